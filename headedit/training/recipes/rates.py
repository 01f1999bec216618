"""Default learning rates of vectors: a step moves all of them together by the same length, however many there are.

Adam moves every value by about its learning rate, whatever the size of the gradient. With n values the edits so move by
rate · √n in one step, offsets in units of the root mean square of their site's input. It is this length that a model
bears or does not bear: a rate that suits a thousand values breaks a model in which tens of thousands are edited.
"""

import math
from dataclasses import replace

from headedit.edits import HeadEdits
from headedit.edits.gate_set import not_closed
from headedit.training.recipes.stage import Stage

LENGTH = 5.0
"""Length of a step of the offsets at the peak learning rate, were all values offsets."""

LARGEST = 0.5
"""The largest default learning rate of offsets, which that of a few values does not exceed."""

SHARE_OF_SCALES = 0.5
"""Default learning rate of scales over that of offsets."""


def default_rate(values: int) -> float:
    """The peak learning rate of offsets for a number of trained values, in units of their site's input."""
    return min(LARGEST, LENGTH / math.sqrt(max(1, values)))


def count_values(edits: HeadEdits) -> int:
    """The number of values in vectors whose gates are not closed for good.

    Edits without gates count all.
    """
    sites = list(edits.module)
    if not any(len(site.gates) for site in sites):
        return sum(vector.numel() for vector in edits.vector_parameters())
    left = ((sites[gate.site], gate.vector) for gate in not_closed(edits.module))
    return sum(site.head_dim * len(site.vectors_of(vector)) for site, vector in left)


def with_rates(stage: Stage, edits: HeadEdits) -> Stage:
    """A stage whose rates that are None have their default for the values that are trained, times ``rate_factor``.

    Args:
        stage: the stage.
        edits: the handle, with the gates as the stage finds them.
    """
    offset = stage.rate_factor * default_rate(round(stage.moved * count_values(edits)))
    scale = SHARE_OF_SCALES * offset
    return replace(
        stage,
        offset_lr=offset if stage.offset_lr is None else stage.offset_lr,
        scale_lr=scale if stage.scale_lr is None else stage.scale_lr,
    )
