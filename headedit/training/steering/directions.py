"""Directions between two sets of outputs of a site's heads, and how well each head tells the sets apart."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from einops import einsum
from torch import Tensor

from headedit.training.steering.probes import Probes, unit

Method = Literal["mean_difference", "probe"]

FEWEST_FOR_PROBES = 4
"""Of each set: some to fit a probe on and some to measure it on."""

_FOLDS = 4


@dataclass(frozen=True)
class Directions:
    """What two sets of outputs say of the heads of one site.

    Fields:
        direction: unit vector towards the positive set, [heads, width]; 0 where the sets do not differ.
        sigma: standard deviation of all examples along it, [heads].
        accuracy: of a probe on held-out examples, [heads]; NaN where a set has too few for a probe.
        effect: held-out difference of the means along the direction, in standard deviations within a set, [heads].
    """

    direction: Tensor
    sigma: Tensor
    accuracy: Tensor
    effect: Tensor


def mass_mean_shift(z: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """θ, [heads, width], from the mean of class 0 to that of class 1, and σ along it, [heads].

    Args:
        z: outputs of the heads, [heads, examples, width].
        truth: 0 or 1 for each example, [examples].
    """
    direction = _mean_difference(z, truth)
    return direction, _along(z, direction).std(1, correction=0)


def find_directions(
    z: Tensor, positives: int, *, method: Method, paired: bool, l2: float, generator: torch.Generator
) -> Directions:
    """Directions from all examples; accuracies and effects by cross-validation: every example is held out once.

    Args:
        z: outputs of the heads, [heads, examples, width], double precision; the positive ones first.
        positives: number of the positive ones.
        method: what the direction is.
        paired: whether the i-th example of one set belongs to the i-th of the other: the mean of each pair is taken off
            before anything but σ is measured, and pairs are held out together.
        l2: of the probes; see ``fit_probes``.
        generator: draws which examples are held out together.
    """
    examples = z.shape[1]
    truth = (torch.arange(examples) < positives).long()
    own = z
    if paired:
        middle = (z[:, :positives] + z[:, positives:]) / 2
        own = z - torch.cat([middle, middle], 1)
    probed = min(positives, examples - positives) >= FEWEST_FOR_PROBES

    def direction(chosen: Tensor, probes: Probes | None) -> Tensor:
        if method == "probe" and probes is not None:
            return probes.directions()
        return _mean_difference(own[:, chosen], truth[chosen])

    right, along = torch.zeros(z.shape[:2]), z.new_zeros(z.shape[:2])
    for train, held in _folds(positives, examples - positives, paired, generator):
        probes = Probes.fit(own[:, train], truth[train], l2) if probed else None
        if probes is not None:
            right[:, held] = probes.right(own[:, held], truth[held]).float()
        along[:, held] = _along(own[:, held], direction(train, probes))
    whole = Probes.fit(own, truth, l2) if method == "probe" else None
    found = direction(torch.arange(examples), whole)
    return Directions(
        direction=found,
        sigma=_along(z, found).std(1, correction=0),
        accuracy=right.mean(1) if probed else torch.full(z.shape[:1], torch.nan),
        effect=_effect(along[:, :positives], along[:, positives:]),
    )


def _folds(positives: int, negatives: int, paired: bool, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    """Indices to fit on and held out, in ascending order, with the same share of each set in every fold."""
    count = min(_FOLDS, positives, negatives)
    order = torch.randperm(positives, generator=generator)
    other = order if paired else torch.randperm(negatives, generator=generator)
    fold = torch.empty(positives + negatives, dtype=torch.long)
    fold[order] = torch.arange(positives) % count
    fold[positives + other] = torch.arange(negatives) % count
    for i in range(count):
        yield (fold != i).nonzero().flatten(), (fold == i).nonzero().flatten()


def _mean_difference(z: Tensor, truth: Tensor) -> Tensor:
    return unit(z[:, truth == 1].mean(1) - z[:, truth == 0].mean(1))


def _along(z: Tensor, direction: Tensor) -> Tensor:
    return einsum(z, direction, "heads examples width, heads width -> heads examples")


def _effect(positive: Tensor, negative: Tensor) -> Tensor:
    """Cohen's d of two sets of numbers, [heads, examples] each; 0 where they are equal throughout."""
    within = torch.cat([positive - positive.mean(1, keepdim=True), negative - negative.mean(1, keepdim=True)], 1)
    deviation = (within.square().sum(1) / (within.shape[1] - 2)).sqrt()
    difference = positive.mean(1) - negative.mean(1)
    return torch.where(difference == 0, 0, difference / deviation)
