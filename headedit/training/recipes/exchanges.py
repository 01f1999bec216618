"""Interchangeable gates: what it costs to put another gate in the place of a chosen one."""

from collections.abc import Sequence

from headedit.edits.gate_set import GateIndex, all_gates, freeze_gates
from headedit.hf.checkpointing import evaluating_with_gradients
from headedit.runs.selection import Exchange
from headedit.training.loop.state import State
from headedit.training.recipes.gradients import activation_rms
from headedit.training.recipes.model_selection import standard_error
from headedit.training.recipes.session import Session
from headedit.training.recipes.short_training import ShortTraining

MOST_EXCHANGED = 24
"""The largest number of gates for which it is measured, those that are selected most often."""

_STEPS, _MORE_STEPS = 60, 30
_SAMPLE = 16


def measured_exchanges(session: Session, chosen: Sequence[GateIndex]) -> list[Exchange]:
    """Puts in the place of each chosen gate the best other one, and measures what that costs.

    The vectors of the chosen gates are trained for 60 steps. Then one gate at a time is closed, the one with the
    largest gradient is opened in its place, and all are trained for 30 steps more; so are the chosen ones as they are.
    The cost is the mean difference of the losses, example by example, on the validation examples if there are any. As
    the newcomer has little time, the cost is rather too large. The edits are left as they were when the session began.

    Args:
        session: the run; what was measured before it was stopped is read from the journal.
        chosen: the gates.
    """
    finished = session.journal.finished("exchanges")
    if finished is None:
        found = _measure(session, list(chosen)) if chosen else []
        finished = State({"exchanges": found}, {})
        session.journal.finish("exchanges", finished)
        session.restore_start()
    return [
        Exchange(gate=(*gate,), other=(*other,), cost=cost, standard_error=error)
        for gate, other, cost, error in finished.plain["exchanges"]
    ]


def session_rms(session: Session) -> list[float]:
    """Root mean square of each site's input on a few examples, [sites]."""
    with session.without_prefix_cache():
        return activation_rms(session.edits, lambda: session.example_losses(session.train[:_SAMPLE]))


def _measure(session: Session, chosen: list[GateIndex]) -> list[tuple[GateIndex, GateIndex, float, float]]:
    edits, rows = session.edits, session.train if session.valid is None else session.valid
    session.restore_start()
    rms = session_rms(session)
    freeze_gates(edits.module, chosen)
    _train(session, rms, _STEPS, len(chosen))
    trained = edits.snapshot()
    _train(session, rms, _MORE_STEPS, len(chosen))
    before = session.example_losses(rows)
    found = []
    for gate in chosen if len(chosen) < len(all_gates(edits.module)) else []:
        rest = [other for other in chosen if other != gate]
        edits.restore(trained)
        freeze_gates(edits.module, rest)
        gradients = session.gate_gradients(session.train)  # which opens all gates
        other = max(gradients.keys() - {*chosen}, key=lambda one: (gradients[one], one))
        freeze_gates(edits.module, [*rest, other])
        _train(session, rms, _MORE_STEPS, len(chosen))
        difference = session.example_losses(rows) - before
        found.append((gate, other, difference.mean().item(), standard_error(difference)))
    return found


def _train(session: Session, rms: Sequence[float], steps: int, open_gates: int) -> None:
    vectors = [dict(edit.vectors.items()) for edit in session.edits.module]
    training = ShortTraining(
        session.edits,
        [vectors],
        session.train,
        rms=rms,
        batch_size=session.batch_size,
        pad_token_id=session.pad_token_id,
        seed=session.seed,
        steps=steps,
    )
    with evaluating_with_gradients(session.edits.model):
        for _ in range(steps):
            training.backward(open_gates)
            training.update()
    session.edits.module.zero_grad()
