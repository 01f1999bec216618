"""Stability selection of heads: ranks all gates, with decoys, on complementary halves of the examples.

Each half is ranked from the same first edits and knows nothing of the other examples, as the bounds require: vectors
that were trained on all examples would carry what they learned by chance into every half.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from headedit.data.batches import Encoded
from headedit.edits import HeadEdits
from headedit.edits.gate_set import all_gates, close, freeze_gates
from headedit.errors import HeadEditError
from headedit.hf.checkpointing import evaluating_with_gradients
from headedit.io.bars import tqdm
from headedit.runs.selection import RATE, Competitor, Selection, largest_q, select, with_exchanges
from headedit.training.loop.state import State
from headedit.training.recipes.decoys import Decoys
from headedit.training.recipes.exchanges import MOST_EXCHANGED, measured_exchanges, session_rms
from headedit.training.recipes.session import Session
from headedit.training.recipes.short_training import ShortTraining

STEPS = 60
"""Optimiser steps by which a half is ranked."""

_FIRST_CLOSED, _LAST_CLOSED = 0.2, 0.9
_MEMORY = 0.95
_KEPT_RATE = 0.5


def select_heads(session: Session, halves: int, rate: float = RATE) -> Selection:
    """Ranks the gates on complementary halves of the training examples, and chooses those that the halves agree on.

    Then it measures what it costs to exchange each of the chosen gates; see ``measured_exchanges``. The edits are left
    as they were when the session began. What was done before the run was stopped is read from the journal.

    Args:
        session: the run.
        halves: number of halves, even; each two together have all examples.
        rate: the nominal rate of false gates among the chosen ones.

    Raises:
        HeadEditError: the edits have no gates, or there are fewer than 4 examples.
    """
    gates = all_gates(session.edits.module)
    found = select(ranked_halves(session, halves), 2 * len(gates), rate)
    return with_exchanges(found, measured_exchanges(session, found.chosen[:MOST_EXCHANGED]))


def ranked_halves(session: Session, halves: int) -> list[list[Competitor]]:
    """For every half, the more important half of the gates and decoys, in their order; see ``select_heads``."""
    edits, rows = session.edits, session.train
    gates = all_gates(edits.module)
    check_halves(halves)
    if not gates:
        raise HeadEditError("bootstrap: these edits have no gates, so there is nothing to select among.")
    if len(rows) < 4:
        raise HeadEditError(f"bootstrap: found {len(rows)} training examples, expected at least 4, 2 for each half.")
    kept, place = largest_q(2 * len(gates), _KEPT_RATE), {gate: number for number, gate in enumerate(gates)}
    found: list[list[Competitor]] = []
    rms: list[float] = []
    names = [f"half {i}" for i in range(1, halves + 1)]
    with tqdm(total=halves, unit="half", desc="halves", disable=not session.progress, dynamic_ncols=True) as bar:
        for name, chosen in zip(names, halves_of(len(rows), halves, session.seed), strict=True):
            finished = session.journal.finished(name)
            if finished is None:
                session.restore_start()
                rms = rms or session_rms(session)
                order = rank(
                    edits,
                    [rows[i] for i in chosen],
                    rms=rms,
                    batch_size=session.batch_size,
                    pad_token_id=session.pad_token_id,
                    seed=session.seed,
                )[:kept]
                places = [[place[one.gate], one.decoy] for one in order]
                finished = State({"order": places}, {"order": torch.tensor([number for number, _ in places])})
                session.journal.finish(name, finished)
            found.append([Competitor(gates[number], decoy) for number, decoy in finished.plain["order"]])
            bar.update()
    session.restore_start()
    return found


def check_halves(halves: int) -> None:
    """Raises a HeadEditError if a number of halves is not even and at least 2."""
    if halves < 2 or halves % 2:
        raise HeadEditError(
            f"bootstrap: found {halves}, expected an even number of 2 or more, such as 20: the examples are halved "
            "again and again, and both halves are ranked."
        )


def halves_of(examples: int, halves: int, seed: int) -> Iterator[list[int]]:
    """Indices of the examples of each half, two halves of all examples after another; an odd example is left out."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(halves // 2):
        order = torch.randperm(examples, generator=generator).tolist()
        yield order[: examples // 2]
        yield order[examples // 2 : 2 * (examples // 2)]


def rank(
    edits: HeadEdits,
    rows: Sequence[Encoded],
    *,
    rms: Sequence[float],
    batch_size: int,
    pad_token_id: int,
    seed: int,
    steps: int = STEPS,
) -> list[Competitor]:
    """Ranks all gates and their decoys on some examples, the most important first.

    The vectors of all gates are trained together for a few steps. Those that contribute least to the loss,
    ⟨v, ∂L/∂v⟩² as a running mean, are closed for good, until one is left; the order of closing, backwards, is the rank.
    The learning rates are those of ``ShortTraining``.

    Args:
        edits: the handle, with the edits to start from; they are changed.
        rows: encoded examples.
        rms: root mean square of each site's input, [sites].
        batch_size: examples per step.
        pad_token_id: token id that pads batches.
        seed: of the order of the examples and of the decoys.
        steps: number of optimiser steps.
    """
    module, sites = edits.module, list(edits.module)
    gates = all_gates(module)
    freeze_gates(module, gates)
    decoys = Decoys(edits, seed)
    kinds: list[list[dict[str, nn.Parameter]]] = [[dict(edit.vectors.items()) for edit in sites], decoys.vectors]
    training = ShortTraining(
        edits,
        kinds,
        rows,
        rms=rms,
        batch_size=batch_size,
        pad_token_id=pad_token_id,
        seed=seed,
        steps=steps,
    )
    alive = [Competitor(gate, decoy) for decoy in (False, True) for gate in gates]
    total, dropped, scores = len(alive), [], dict.fromkeys(alive, 0.0)
    with evaluating_with_gradients(edits.model), decoys:
        for step in range(steps):
            training.backward(open_gates=(len(alive) + 1) // 2)
            found = [_contributions(kind) for kind in kinds]
            for one in alive:
                site, vector, head = one.gate
                effect = sum(found[one.decoy][site][name][head] for name in sites[site].vectors_of(vector)) ** 2
                scores[one] = effect if step == 0 else _MEMORY * scores[one] + (1 - _MEMORY) * effect
            training.update()
            share = ((step + 1) / steps - _FIRST_CLOSED) / (_LAST_CLOSED - _FIRST_CLOSED)
            left = round(total ** (1 - min(1.0, max(0.0, share))))
            if left < len(alive):
                alive.sort(key=lambda one: scores[one], reverse=True)
                alive, closed = alive[:left], alive[left:]
                dropped += closed[::-1]
                close(module, [one.gate for one in closed if not one.decoy])
                decoys.close([one.gate for one in closed if one.decoy], sites)
    module.zero_grad()
    return [*alive, *dropped[::-1]]


@torch.no_grad()
def _contributions(vectors: Sequence[dict[str, nn.Parameter]]) -> list[dict[str, list[float]]]:
    """⟨v, ∂L/∂v⟩ of every head's vectors, by site and vector."""

    def effects(vector: Tensor) -> list[float]:
        grad = vector.grad
        return [0.0] * len(vector) if grad is None else (vector * grad).sum(-1).tolist()

    return [{name: effects(vector) for name, vector in site.items()} for site in vectors]
