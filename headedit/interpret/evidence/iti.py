"""Probes on heads, by inference-time intervention: how well a linear probe on one head tells two classes apart.

ITI (Li, Patel, Viégas, Pfister, Wattenberg, "Inference-time intervention: eliciting truthful answers from a language
model", NeurIPS 2023, arXiv 2306.03341), section 3: a logistic probe per head on its output z at the last token, heads
ranked by held-out accuracy, and z' = z + α·σ·θ on the best, where θ is the direction between the class means
(section 4, "mass mean shift") and σ the standard deviation of z along θ.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from math import nan
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from headedit.data.encoding import check_iterable, ids_to_last_token
from headedit.edits import HeadEdits
from headedit.edits.arguments import as_list
from headedit.edits.values import one_or_more, real_number, whole_number
from headedit.errors import HeadEditError
from headedit.hf.tokenizers import as_tokenizer
from headedit.interpret.evidence.heads import check_handle
from headedit.training.steering.directions import mass_mean_shift
from headedit.training.steering.head_outputs import last_outputs
from headedit.training.steering.probes import held_out_accuracy

_FEWEST = 4  # of a class: some to fit on and some to measure on


@dataclass(frozen=True, kw_only=True, eq=False)
class HeadProbes:
    """Results of probing every head; rows and columns as in ``HeadEdits.gates``, NaN where there is no edited head.

    Fields:
        kind: the kind of site.
        accuracy: of each head's probe on the held-out examples, [layers, heads].
        direction: unit vector from the mean of class 0 to that of class 1 on the training examples (0 where they are
            equal), [layers, heads, head_dim]; NaN beyond the width of a narrower head.
        sigma: standard deviation of the training examples along the direction, [layers, heads].
        baseline: accuracy on the held-out examples of always naming their more frequent class.
        train, valid: numbers of examples to fit on and held out.
    """

    kind: str
    accuracy: Tensor = field(repr=False)
    direction: Tensor = field(repr=False)
    sigma: Tensor = field(repr=False)
    baseline: float
    train: int
    valid: int

    def top(self, k: int) -> list[tuple[int, int]]:
        """(layer, head) of the k best heads, best first; equal ones by layer, then head.

        Raises:
            HeadEditError: ``k`` is no whole number, below 1, or above the number of heads.
        """
        count = int((~self.accuracy.isnan()).sum())
        if not 1 <= whole_number(k, "heads") <= count:
            raise HeadEditError(f"heads: found {k}, expected 1 to {count}, the number of heads that were probed.")
        order = torch.sort(self.accuracy.flatten().nan_to_num(nan=-1.0), descending=True, stable=True).indices
        return [divmod(int(i), self.accuracy.shape[1]) for i in order[:k]]

    def apply(self, edits: HeadEdits, heads: int = 48, strength: float = 15.0) -> None:
        """Sets the best heads to z' = z + strength · sigma · direction, which replaces the edits that they had.

        The edits of all other heads stay as they are, open ones too.

        Args:
            edits: the handle that was probed, or one with the same heads.
            heads: how many of the best heads to set; K in the paper.
            strength: α in the paper; negative values steer towards class 0.

        Raises:
            HeadEditError: ``heads`` is below 1 or above their number, or ``edits`` lacks these heads or offsets.
        """
        check_handle(edits)
        chosen, strength = self.top(heads), real_number(strength, "strength")
        widths = {
            (s.layer, first + h): s.head_dim for s, _, first in edits.module.columns(self.kind) for h in range(s.heads)
        }
        offsets = {place: vector[~vector.isnan()] for place in chosen for vector in [self.direction[place]]}
        for (layer, head), offset in offsets.items():
            if widths.get((layer, head)) != len(offset):
                raise HeadEditError(
                    f"These edits have no {self.kind} head {head} of width {len(offset)} in layer {layer}, which was "
                    "probed; give the edits that were probed."
                )
        for (layer, head), offset in offsets.items():
            edits.set_head(layer, head, offset=strength * self.sigma[layer, head] * offset, kind=self.kind)


def iti(
    edits: HeadEdits,
    examples: Iterable[Any],
    labels: Sequence[int] | Tensor,
    *,
    tokenizer: Any = None,
    valid_share: float = 0.25,
    batch_size: int = 16,
    seed: int = 0,
    l2: float = 1.0,
    kind: str | None = None,
    progress: bool = True,
) -> HeadProbes:
    """Ranks heads by a logistic probe on their output at the last token, in the base model, in eval mode.

    Args:
        edits: the handle, which says which heads there are; switched off during the call, and not changed.
        examples: examples of any form that ``headedit.fit`` takes, read at the last token of the last response without
            what ends it, or rows with ``input_ids``, read at the last of these.
        labels: 0 or 1 for each example, such as for false and true.
        tokenizer: the model's tokenizer, its name or its folder; None is enough where all examples hold ``input_ids``.
        valid_share: share of each class that is held out; at least one example, and at most all but two.
        batch_size: examples per batch.
        seed: of the split; no other random numbers are drawn.
        l2: weight of ½‖w‖², which is added to the summed log loss, on standardised features; the intercept is free.
        kind: the kind of site; by default attention, or else the first.
        progress: show a bar.

    Raises:
        HeadEditError: there are no examples, labels are not one 0 or 1 each, a class has fewer than 4 examples, an
            example is of another form, empty, or longer than the model's context, the edits have no such kind, a
            head's output is not finite, or an option is out of its range.
    """
    check_handle(edits)
    check_iterable(examples, "The set of examples")
    _check_option(
        "valid_share", valid_share, 0 < real_number(valid_share, "valid_share") < 1, "a number between 0 and 1"
    )
    _check_option("l2", l2, real_number(l2, "l2", "a number above 0") > 0, "a number above 0")
    one_or_more(batch_size, "batch_size")
    whole_number(seed, "seed")
    grid = edits.gates(kind).offset
    kind = edits.module.kinds()[0] if kind is None else kind
    reader = as_tokenizer(tokenizer)
    rows = [ids_to_last_token(example, reader, f"Example {i + 1}") for i, example in enumerate(examples)]
    truth = _classes(labels, len(rows))
    train, valid = _split(truth, valid_share, seed)
    places = [(site, first) for site, _, first in edits.module.columns(kind)]
    outputs = last_outputs(edits, [site for site, _ in places], rows, batch_size=batch_size, progress=progress)
    accuracy, sigma = torch.full_like(grid, nan), torch.full_like(grid, nan)
    direction = torch.full((*grid.shape, max(site.head_dim for site, _ in places)), nan)
    for (site, first), output in zip(places, outputs, strict=True):
        z = rearrange(output.double(), "examples heads width -> heads examples width")
        columns = slice(first, first + site.heads)
        unit, spread = mass_mean_shift(z[:, train], truth[train])
        accuracy[site.layer, columns] = held_out_accuracy(z, truth, train, valid, l2).float()
        direction[site.layer, columns, : site.head_dim] = unit.float()
        sigma[site.layer, columns] = spread.float()
    share = truth[valid].double().mean().item()
    return HeadProbes(
        kind=kind,
        accuracy=accuracy,
        direction=direction,
        sigma=sigma,
        baseline=max(share, 1 - share),
        train=len(train),
        valid=len(valid),
    )


def _check_option(name: str, value: float, fits: bool, expected: str) -> None:
    if not fits:
        raise HeadEditError(f"{name}: found {value}, expected {expected}.")


def _classes(labels: Sequence[int] | Tensor, examples: int) -> Tensor:
    if not examples:
        raise HeadEditError("There is nothing to probe with: the set of examples is empty.")
    given = as_list(labels, "labels", "0 or 1 for each example")
    values = labels.tolist() if isinstance(labels, Tensor) else given
    if len(values) != examples:
        raise HeadEditError(f"labels: found {len(values)} for {examples} examples; give one for each.")
    wrong = next((i for i, value in enumerate(values) if value not in (0, 1)), None)
    if wrong is not None:
        raise HeadEditError(f"labels: found {values[wrong]!r} for example {wrong + 1}, expected 0 or 1.")
    truth = torch.tensor([int(value) for value in values])
    for label in (0, 1):
        if (count := values.count(label)) < _FEWEST:
            raise HeadEditError(f"labels: found {count} examples of class {label}, at least {_FEWEST} are needed.")
    return truth


def _split(truth: Tensor, valid_share: float, seed: int) -> tuple[Tensor, Tensor]:
    """Indices to fit on and held out, in ascending order, with the same share of each class."""
    generator = torch.Generator().manual_seed(seed)
    held = torch.zeros(len(truth), dtype=torch.bool)
    for label in (0, 1):
        members = (truth == label).nonzero().flatten()
        count = min(max(1, round(valid_share * len(members))), len(members) - 2)
        held[members[torch.randperm(len(members), generator=generator)[:count]]] = True
    return (~held).nonzero().flatten(), held.nonzero().flatten()
