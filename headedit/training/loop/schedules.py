"""Schedules of the penalty weights λ and of learning rates, by name.

Among them the four of each in JoLA (Lai, Fraser, Titov, ICML 2025, arXiv 2502.01179), with the constants of its
released code.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

LambdaSchedule = Literal["linear", "constant", "cyclic", "performance", "exponential"]
LRSchedule = Literal[
    "cosine",
    "linear",
    "constant",
    "constant_with_warmup",
    "inverse_sqrt",
    "cyclic",
    "adaptive",
    "exponential",
    "cosine_with_restarts",
    "polynomial",
    "cosine_with_min_lr",
    "cosine_warmup_with_min_lr",
    "warmup_stable_decay",
    "greedy",
]
LR_SCHEDULES = get_args(LRSchedule)

WITHOUT_WARMUP = ("reduce_lr_on_plateau", "greedy")
"""Schedules that follow the validation loss and have no warm-up in transformers, by their names there."""

CYCLE = 20
"""Steps per cycle, for λ and learning rates."""

DECAY = 0.01
"""Rate of the exponential schedules, per step."""

_FACTOR = 0.1  # of the exponential learning rate: lr0 · 0.1 · e^(−0.01 t)
_MOVE = 0.05  # of the performance schedule: the released ±0.01 on a λ that ends at 0.2


@dataclass(frozen=True)
class Moment:
    """How far a run has got.

    Fields:
        step: optimiser steps taken.
        total: optimiser steps of the whole run.
        eval_losses: the validation losses so far, in order.
    """

    step: int
    total: int
    eval_losses: tuple[float, ...] = ()

    @property
    def progress(self) -> float:
        """Share of the run's steps that were taken, 0 to 1."""
        return self.step / max(1, self.total)


def lambda_factor(schedule: LambdaSchedule, moment: Moment) -> float:
    """The factor on a λ at a moment of the run.

    ``linear`` rises from 0 to 1 over the run; ``constant`` is 1; ``cyclic`` is ½ + ½·sin with a cycle of 20 steps;
    ``exponential`` is e^(−0.01 t), t in steps; ``performance`` starts at 1, and goes up by 0.05 after a validation
    loss below the one before and down by 0.05 after any other, never below 0.
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


def lr_factor(schedule: str, warmup: int) -> Callable[[int], float] | None:
    """The factor on a learning rate by step, for schedules that transformers lacks or does not warm up, else None.

    ``cyclic`` is ½ + ½·sin with a cycle of 20 steps, ``exponential`` is 0.1·e^(−0.01 t), ``constant`` is 1, all after a
    linear warm-up of ``warmup`` steps; t counts from its end. (The paper prints λ^t as the factor of ``exponential``,
    which would end learning in a few steps.) ``adaptive`` is transformers' ``reduce_lr_on_plateau``.
    """
    factors: dict[str, Callable[[int], float]] = {
        "cyclic": _wave,
        "exponential": lambda t: _FACTOR * math.exp(-DECAY * t),
        "constant": lambda t: 1.0,
    }
    factor = factors.get(schedule)
    if factor is None:
        return None
    return lambda step: factor(0) * step / warmup if step < warmup else factor(step - warmup)


def hf_name(schedule: LRSchedule) -> str:
    """The name of a learning-rate schedule in transformers; ``constant`` for those that it does not have."""
    return {"adaptive": "reduce_lr_on_plateau", "cyclic": "constant", "exponential": "constant"}.get(schedule, schedule)


class WarmUp(TrainerCallback):  # type: ignore[misc]
    """The linear warm-up of a schedule that has none in transformers; see ``WITHOUT_WARMUP``.

    Args:
        rates: the learning rate of each group of parameters after the warm-up.
        steps: the number of steps of the warm-up, at least 1.
    """

    def __init__(self, rates: Sequence[float], steps: int) -> None:
        self._rates, self._steps = rates, steps

    def on_step_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        optimizer: Any = None,
        **kwargs: Any,
    ) -> None:
        """Sets the learning rates of a step of the warm-up, and once those after it."""
        if optimizer is not None and state.global_step <= self._steps:
            for group, rate in zip(optimizer.param_groups, self._rates, strict=True):
                group["lr"] = rate * state.global_step / self._steps


def _wave(step: int) -> float:
    return 0.5 + 0.5 * math.sin(2 * math.pi * step / CYCLE)
