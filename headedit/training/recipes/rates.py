"""Default learning rates of vectors: a step moves all of them together by the same length, however many there are.

Adam moves every value by about its learning rate, whatever the size of the gradient. With n values the edits so move by
rate · √n in one step, offsets in units of the root mean square of their site's input. It is this length that a model
bears or does not bear: a rate that suits a thousand values breaks a model in which tens of thousands are edited.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from headedit.edits import HeadEdits
from headedit.edits.gate_set import GateIndex, not_closed
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


def count_values(edits: HeadEdits, gates: Iterable[GateIndex] | None = None) -> int:
    """The number of values in vectors that some gates act on; by default of all gates that are not closed for good.

    Edits without gates count all.
    """
    sites = list(edits.module)
    if not any(len(site.gates) for site in sites):
        return sum(vector.numel() for vector in edits.vector_parameters())
    chosen = not_closed(edits.module) if gates is None else gates
    return sum(sites[gate.site].head_dim * len(sites[gate.site].vectors_of(gate.vector)) for gate in chosen)


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


def multiply_rates(factors: Mapping[int, float], optimizer: Any, scheduler: Any) -> None:
    """Multiplies the learning rates of some groups of an optimiser, now and for the rest of its schedule.

    Args:
        factors: by index of the group.
        optimizer: the optimiser, or accelerate's wrapper of it.
        scheduler: its scheduler, or accelerate's wrapper of it; None if there is none.
    """
    inner = getattr(scheduler, "scheduler", scheduler)
    for index, factor in factors.items():
        group = optimizer.param_groups[index]
        group["lr"] = group["lr"] * factor
        if "initial_lr" in group:
            group["initial_lr"] = group["initial_lr"] * factor
        if hasattr(inner, "base_lrs"):
            inner.base_lrs[index] = inner.base_lrs[index] * factor


def groups_with(optimizer: Any, parameters: Iterable[Tensor]) -> list[int]:
    """The indices of the groups of an optimiser that hold any of some parameters."""
    wanted = {id(parameter) for parameter in parameters}
    return [
        index for index, group in enumerate(optimizer.param_groups) if any(id(p) in wanted for p in group["params"])
    ]
