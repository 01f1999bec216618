"""How a λ and a learning rate move over a run, by name.

The four schedules of each that JoLA names (Lai, Fraser, Titov, ICML 2025, arXiv 2502.01179) and its released code
has, with the constants found there.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

LambdaSchedule = Literal["linear", "constant", "cyclic", "performance", "exponential"]
LRSchedule = Literal["cosine", "linear", "constant_with_warmup", "inverse_sqrt", "cyclic", "adaptive", "exponential"]
LR_SCHEDULES = get_args(LRSchedule)

CYCLE = 20
"""Steps of a cycle, for λ and learning rates."""

DECAY = 0.01
"""Rate of the exponential schedules, a step."""

_FACTOR = 0.1  # of the exponential learning rate: lr0 · 0.1 · e^(−0.01 t)
_MOVE = 0.05  # of the performance schedule: the released ±0.01 on a λ that ends at 0.2


@dataclass(frozen=True)
class Moment:
    """Where a run is.

    Fields:
        step: optimiser steps done.
        total: optimiser steps of the whole run.
        eval_losses: the validation losses so far, in order.
    """

    step: int
    total: int
    eval_losses: tuple[float, ...] = ()

    @property
    def progress(self) -> float:
        """Share of the run that is done, 0 to 1."""
        return self.step / max(1, self.total)


def lambda_factor(schedule: LambdaSchedule, moment: Moment) -> float:
    """What a λ is multiplied with.

    ``linear`` rises from 0 to 1 over the run; ``constant`` is 1; ``cyclic`` is ½ + ½·sin with a cycle of 20 steps;
    ``exponential`` is e^(−0.01 t), t in steps; ``performance`` starts at 1 and goes up by 0.05 after a validation
    that is better than the one before, down by as much after one that is not, and never below 0.
    """
    if schedule == "linear":
        return moment.progress
    if schedule == "cyclic":
        return _wave(moment.step)
    if schedule == "exponential":
        return math.exp(-DECAY * moment.step)
    if schedule == "performance":
        factor = 1.0
        for before, after in zip(moment.eval_losses, moment.eval_losses[1:], strict=False):
            factor = max(0.0, factor + (_MOVE if after < before else -_MOVE))
        return factor
    return 1.0


def lr_factor(schedule: LRSchedule, warmup: int) -> Callable[[int], float] | None:
    """The course of a learning rate that transformers has no name for; None where it has.

    ``cyclic`` is ½ + ½·sin with a cycle of 20 steps, ``exponential`` is 0.1·e^(−0.01 t), both after a linear warm-up
    of ``warmup`` steps; t counts from its end. (The paper prints λ^t for the factor of the second, which would end
    learning in a few steps.) ``adaptive`` is transformers' ``reduce_lr_on_plateau``.
    """
    courses: dict[str, Callable[[int], float]] = {
        "cyclic": _wave,
        "exponential": lambda t: _FACTOR * math.exp(-DECAY * t),
    }
    course = courses.get(schedule)
    if course is None:
        return None
    return lambda step: course(0) * step / warmup if step < warmup else course(step - warmup)


def hf_name(schedule: LRSchedule) -> str:
    """The name of a learning-rate schedule in transformers; ``constant`` for those it has not."""
    return {"adaptive": "reduce_lr_on_plateau", "cyclic": "constant", "exponential": "constant"}.get(schedule, schedule)


def _wave(step: int) -> float:
    return 0.5 + 0.5 * math.sin(2 * math.pi * step / CYCLE)
