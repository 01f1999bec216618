"""``headedit.steer``: an edit without training, from two sets of examples.

Contrastive activation addition (Rimsky, Gabrieli, Schulz, Tong, Hubinger, Turner, "Steering Llama 2 via contrastive
activation addition", ACL 2024, arXiv 2312.06681) adds the difference of the means of two sets. Inference-time
intervention (Li, Patel, Viégas, Pfister, Wattenberg, NeurIPS 2023, arXiv 2306.03341) adds α·σ·θ to the heads whose
probe is most accurate. Both are an offset per head, so what they find is an edit, and a start for ``headedit.fit``.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar, get_args

import torch
from einops import rearrange
from torch import nn

from headedit.data.batches import Encoded
from headedit.data.clock import Clock
from headedit.data.encoding import check_lengths
from headedit.data.reading import Tokens, tokens_to_read
from headedit.data.rows import Vocabulary, is_encoded
from headedit.edits import HeadEdits
from headedit.edits.values import whole_number
from headedit.errors import HeadEditError, suggest
from headedit.hf.loading import load_tokenizer
from headedit.hf.tokenizers import as_tokenizer
from headedit.io.describe import describe
from headedit.training.arguments import check_examples
from headedit.training.steering.directions import FEWEST_FOR_PROBES, Method, find_directions
from headedit.training.steering.head_outputs import head_outputs
from headedit.training.steering.steering import RankBy, Steering, check_steering_strength, check_writable
from headedit.training.trainable import edits_of

T = TypeVar("T", bound=str)

STRENGTH = 1.0
"""Length of the offsets where none is given, in standard deviations of each head's output."""

_FEWEST = 2
_SHARE = 20
"""One of so many heads is steered where no number is given: 48 of 1,024 in the paper of ITI."""


def steer(
    edits: HeadEdits | nn.Module,
    positive: Iterable[Any],
    negative: Iterable[Any],
    *,
    method: Method = "mean_difference",
    heads: int | None = None,
    strength: float = STRENGTH,
    tokens: Tokens = "last",
    rank_by: RankBy = "accuracy",
    paired: bool = False,
    kind: str | None = None,
    tokenizer: Any = None,
    batch_size: int = 16,
    l2: float = 1.0,
    seed: int = 0,
    progress: bool = True,
) -> Steering:
    """Writes directions from negative to positive examples into the offsets of the active edit, without training.

    >>> found = headedit.steer(edits, positive, negative, heads=10)  # doctest: +SKIP

    The edit becomes z' = z + strength · σ · direction on the best heads: their offset gates are open, all other gates
    are closed, all other vectors 0. It is an edit as any other, to be saved, merged and routed; ``edits.strength``
    makes it weaker or stronger. ``headedit.fit`` trains from there: ``localise`` and ``jola`` let all gates be learned
    again, ``ungated``, ``ist`` and ``rst`` open them all, ``refit`` keeps them; ``lofit``, which starts from nothing,
    refuses. In other trainers the gates stay as they are, and the offsets of the chosen heads alone are learned.

    Heads are read in the base model, in eval mode. Directions are from all examples; accuracies and effects from 4-fold
    cross-validation, in which every example is held out once.

    Args:
        edits: the handle, or the model that carries the edits.
        positive: examples to steer towards: texts, (prompt, response) pairs, or records of any form that
            ``headedit.fit`` takes.
        negative: examples to steer away from; perhaps another number of them.
        method: ``mean_difference`` of the two sets (CAA; "mass mean shift" in ITI), or ``probe`` for the direction of a
            logistic probe (ITI).
        heads: how many heads to steer; None for a twentieth of them, at least one.
        strength: length of the offsets, in σ of each head: the standard deviation over all examples of its output along
            the direction. Between the means of two sets of equal size that are far apart lie 2 σ. Negative values steer
            away.
        tokens: at which tokens heads are read: the ``last`` one of the response or text; those of the ``response``; or
            ``all``. What ends a response is not read, nor the token that begins every text. The output of an example is
            the mean over its tokens.
        rank_by: what the best heads have: the highest ``accuracy`` of a probe on held-out examples, or the largest
            ``effect``, the difference of the means of held-out examples in standard deviations within a set.
        paired: the i-th positive and negative example belong together, such as two answers to a question. The mean of
            each pair is taken off before probes and effects are measured, and pairs are held out together.
        kind: the kind of site; by default attention, or else the first.
        tokenizer: tokenizer for examples of text, or its name or folder; None for the one at the model's own name or
            path.
        batch_size: examples per batch.
        l2: weight of ½‖w‖² of the probes, on standardised outputs.
        seed: draws which examples are held out together; no other random numbers are drawn.
        progress: show a bar.

    Returns:
        Directions, accuracies and effects of all heads, and which were written; its ``apply`` writes other numbers of
        heads and strengths without reading the examples again.

    Raises:
        HeadEditError: a set has fewer than 2 examples, or 4 where a probe is needed; an example is of another form,
            empty, has no response where its tokens are asked for, or is longer than the model's context; the edits have
            no offsets or no such kind, or are detached, merged, disabled, sharded or without values; a head's output is
            not finite; both sets give every head the same outputs; or an argument is out of its range. The edits are
            as they were then.
    """
    edits = edits_of(edits, "headedit.steer(edits, positive, negative)")
    method, tokens = _one_of(method, "method", Method), _one_of(tokens, "tokens", Tokens)
    rank_by = _one_of(rank_by, "rank_by", RankBy)
    strength, seed = check_steering_strength(strength), whole_number(seed, "seed")
    batch_size = whole_number(batch_size, "batch_size")
    if not isinstance(l2, int | float) or not 0 < l2 < math.inf:
        raise HeadEditError(f"l2: found {describe(l2)}, expected a number above 0.")
    if not isinstance(paired, bool):
        raise HeadEditError(f"paired: found {describe(paired)}, expected True or False.")
    check_writable(edits)
    grid = edits.gates(kind).offset
    kind = edits.module.kinds()[0] if kind is None else kind
    total = int((~grid.isnan()).sum())
    wanted = max(1, total // _SHARE) if heads is None else whole_number(heads, "heads", "how many heads to steer")
    if not 1 <= wanted <= total:
        raise HeadEditError(f"heads: found {heads}, expected 1 to {total}, the number of {kind} heads of these edits.")
    sets = {name: _listed(given, name) for name, given in (("positive", positive), ("negative", negative))}
    _check_counts(len(sets["positive"]), len(sets["negative"]), method, rank_by, paired)
    with Clock() as clock:
        rows = _encoded(edits, sets, tokenizer, tokens)
    places = [(site, first) for site, _, first in edits.module.columns(kind)]
    outputs = head_outputs(edits, [site for site, _ in places], rows, batch_size=batch_size, progress=progress)
    accuracy, effect, sigma = (torch.full_like(grid, torch.nan) for _ in range(3))
    direction = torch.full((*grid.shape, max(site.head_dim for site, _ in places)), torch.nan)
    positives = len(sets["positive"])
    for (site, first), output in zip(places, outputs, strict=True):
        found = find_directions(
            rearrange(output.double(), "examples heads width -> heads examples width"),
            positives,
            method=method,
            paired=paired,
            l2=float(l2),
            generator=torch.Generator().manual_seed(seed),  # the same parts at every site
        )
        columns = slice(first, first + site.heads)
        accuracy[site.layer, columns], effect[site.layer, columns] = found.accuracy.float(), found.effect.float()
        direction[site.layer, columns, : site.head_dim] = found.direction.float()
        sigma[site.layer, columns] = found.sigma.float()
    measured = Steering(
        kind=kind,
        method=method,
        tokens=tokens,
        rank_by=rank_by,
        paired=paired,
        strength=strength,
        chosen=[],
        accuracy=accuracy,
        effect=effect,
        direction=direction,
        sigma=sigma,
        baseline=max(positives, len(rows) - positives) / len(rows),
        positive=positives,
        negative=len(rows) - positives,
    )
    measured.chosen.extend(measured.top(wanted))
    measured.apply(edits)
    edits.module.date = clock.date
    return measured


def _one_of(given: T, name: str, allowed: Any) -> T:
    known = get_args(allowed)
    if given not in known:
        raise HeadEditError(
            f"{name}: found {describe(given)}, expected one of {', '.join(known)}."
            f"{suggest(str(given), known, elsewhere=True)}"
        )
    return given


def _listed(given: Any, name: str) -> Sequence[Any]:
    check_examples(given, name, texts=True)
    examples = given if isinstance(given, Sequence) else list(given)
    if not len(examples):
        raise HeadEditError(f"{name}: the set of examples is empty; there is nothing to steer by.")
    return examples


def _check_counts(positives: int, negatives: int, method: Method, rank_by: RankBy, paired: bool) -> None:
    if paired and positives != negatives:
        raise HeadEditError(
            f"paired: found {positives} positive and {negatives} negative examples, expected as many of each, the i-th "
            "of one with the i-th of the other. Leave paired out for sets without pairs."
        )
    probed = method == "probe" or rank_by == "accuracy"
    fewest = FEWEST_FOR_PROBES if probed else _FEWEST
    for name, count in (("positive", positives), ("negative", negatives)):
        if count < fewest:
            out = " method='mean_difference' with rank_by='effect' needs 2 of each set." if probed else ""
            raise HeadEditError(
                f"{name}: found {count} example{'s' * (count != 1)}, at least {fewest} are needed to "
                f"{'fit and measure probes' if probed else 'measure a spread'}.{out}"
            )


def _encoded(edits: HeadEdits, sets: dict[str, Sequence[Any]], tokenizer: Any, tokens: Tokens) -> list[Encoded]:
    """Token ids of the positive examples and then of the negative ones, with labels on the tokens that are read."""
    model, tokenizer = edits.model, as_tokenizer(tokenizer)
    if tokenizer is None and not all(is_encoded(example) for given in sets.values() for example in given):
        tokenizer = load_tokenizer(getattr(model.config, "_name_or_path", ""))
    vocabulary = Vocabulary.of(model)
    rows: list[Encoded] = []
    for name, given in sets.items():
        found = []
        for i, example in enumerate(given, start=1):
            where = f"{name} example {i}"
            found.append(tokens_to_read(example, tokenizer, where, tokens))
            vocabulary.check_ids(found[-1]["input_ids"], where)
        check_lengths([row["input_ids"] for row in found], model, f"{name} example")
        rows += found
    return rows
