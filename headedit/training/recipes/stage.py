"""``Stage``: the settings of one stage of training, as arguments of transformers' Trainer."""

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from transformers import EarlyStoppingCallback

from headedit.errors import HeadEditError
from headedit.training.loop.schedules import LRSchedule, hf_name

EPOCHS = 20
"""Passes over the examples where no number is given."""

MIN_STEPS = 300
"""Least number of optimiser steps where neither it nor a number of passes is given."""

_LOGS_PER_EPOCH = 5

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Stage:
    """The settings of one stage of training.

    Fields:
        epochs: passes over the examples.
        min_steps: least number of optimiser steps; there are more epochs if these give fewer.
        given: whether the user gave the number of epochs, so that more of them are reported.
        batch_size: examples per step of one process; all examples if there are fewer. Several processes, and
            ``gradient_accumulation_steps``, multiply it.
        scale_lr: peak learning rate of the scales; None for the default, which follows the number of trained values.
        offset_lr: peak learning rate of the offsets, in units of the site's activations if ``relative``; None for the
            default, which follows the number of trained values.
        rate_factor: factor on the rates that are None.
        gate_lr: peak learning rate of the gate logits.
        relative: whether ``offset_lr`` is multiplied by the root mean square of the site's input.
        moved: share of the trained values that each step moves, for the default rates.
        dropout: share of the heads whose edit each training pass leaves out; None for the default, which follows the
            numbers of trained values and of labelled tokens.
        dropout_factor: factor on the dropout.
        lr_schedule: schedule of all learning rates after the warm-up.
        warmup_epochs: epochs of linear warm-up; None for a twentieth of the steps.
        adam_epsilon: ε of AdamW.
        weight_decay: weight decay of the vectors.
        max_grad_norm: the norm to which gradients are clipped.
        patience: epochs without a better validation loss after which the stage stops and the best edits are kept;
            None to run to the end and keep the last edits.
        early_stopping_threshold: nats per token by which a validation loss must be below the best one to count as
            better for ``patience``; the best edits are kept whatever it is.
    """

    epochs: int
    min_steps: int = 0
    given: bool = False
    batch_size: int
    scale_lr: float | None
    offset_lr: float | None
    rate_factor: float = 1.0
    moved: float = 1.0
    dropout: float | None = 0.0
    dropout_factor: float = 1.0
    gate_lr: float = 0.0
    relative: bool = False
    lr_schedule: LRSchedule = "cosine"
    warmup_epochs: float | None = None
    adam_epsilon: float = 1e-6
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    patience: int | None = None
    early_stopping_threshold: float = 0.0

    def early_stopping(self) -> EarlyStoppingCallback:
        """The callback that stops the stage by ``patience``, which must be a number."""
        return EarlyStoppingCallback(self.patience, self.early_stopping_threshold)

    def check_schedule(self, *, validated: bool) -> None:
        """Raises a HeadEditError if the learning rate follows the validation loss and there is none."""
        if self.lr_schedule in ("adaptive", "greedy") and not validated:
            raise HeadEditError(f"lr_schedule '{self.lr_schedule}' follows the validation loss; give a validation set.")

    def size(self, examples: int, batches_per_step: int = 1) -> tuple[int, int]:
        """The number of epochs, and of optimiser steps per epoch, for a number of examples."""
        steps_per_epoch = math.ceil(examples / (min(self.batch_size, examples) * batches_per_step))
        return max(self.epochs, math.ceil(self.min_steps / steps_per_epoch)), steps_per_epoch

    def arguments(self, examples: int, batches_per_step: int, *, validated: bool) -> dict[str, Any]:
        """The fields of ``TrainingArguments`` that the stage sets.

        Args:
            examples: number of training examples, at least one.
            batches_per_step: processes × ``gradient_accumulation_steps``.
            validated: whether there is a validation after every epoch.
        """
        batch = min(self.batch_size, examples)
        epochs, steps_per_epoch = self.size(examples, batches_per_step)
        if self.given and epochs > self.epochs:
            logger.warning(
                "min_steps=%d makes %d epochs of the %d that were asked for, as an epoch has %d steps; min_steps=0 "
                "trains these alone.",
                self.min_steps,
                epochs,
                self.epochs,
                steps_per_epoch,
            )
        warmup = steps_per_epoch * epochs / 20 if self.warmup_epochs is None else self.warmup_epochs * steps_per_epoch
        stops = validated and self.patience is not None
        return {
            "num_train_epochs": epochs,
            "per_device_train_batch_size": batch,
            "learning_rate": self.scale_lr,
            "lr_scheduler_type": hf_name(self.lr_schedule),
            "warmup_steps": round(warmup),
            "adam_epsilon": self.adam_epsilon,
            "weight_decay": self.weight_decay,
            "max_grad_norm": self.max_grad_norm,
            "eval_strategy": "epoch" if validated else "no",
            "save_strategy": "epoch" if stops else "no",
            "load_best_model_at_end": stops,
            "metric_for_best_model": "eval_loss" if validated else None,
            "greater_is_better": False if validated else None,
            "logging_steps": max(1, steps_per_epoch // _LOGS_PER_EPOCH),
        }


def length(given: int | None, min_steps: int | None, *, epochs: int = EPOCHS, steps: int = MIN_STEPS) -> dict[str, Any]:
    """The fields of a stage that say how long it is: a number of epochs that is given is exact by default.

    Args:
        given: passes over the examples; None for ``epochs``.
        min_steps: least number of optimiser steps; None for ``steps``, or for none where the passes are given.
        epochs: passes over the examples where none are given.
        steps: least number of optimiser steps where neither is given.
    """
    least = (steps if given is None else 0) if min_steps is None else min_steps
    return {"epochs": epochs if given is None else given, "min_steps": least, "given": given is not None}


def merge_arguments(own: Mapping[str, Any], given: Mapping[str, Any], *, validated: bool) -> dict[str, Any]:
    """The arguments of a stage's Trainer: its own under those given for the whole run, made to fit each other.

    What is given for a validation that the stage does not have is left out, and a stage that keeps its best edits saves
    them at every validation; both are reported.

    Args:
        own: the fields that the stage sets.
        given: the fields that the user gives for the whole run.
        validated: whether the stage has validation examples.

    Raises:
        HeadEditError: the best edits are asked for and checkpoints are not.
    """
    given = dict(given)
    best, saves = given.get("load_best_model_at_end"), given.get("save_strategy")
    if not validated:
        dropped = [key for key in _OF_VALIDATION if given.pop(key, None) not in (None, False, "no")]
        if saves == "best":
            dropped.append("save_strategy")
            del given["save_strategy"]
        if dropped:
            logger.warning("%s: there are no validation examples here, so this does not act.", ", ".join(dropped))
        return {**own, **given}
    if saves == "no" and best:
        raise HeadEditError("load_best_model_at_end needs checkpoints; leave save_strategy 'no' out.")
    if saves == "no" and best is None and own["load_best_model_at_end"]:
        logger.warning("save_strategy 'no': the best edits are still saved until the end, for early stopping.")
        del given["save_strategy"]
    keeps_best = own["load_best_model_at_end"] if best is None else best
    if saves == "steps":  # every validation needs a checkpoint
        given = {"eval_strategy": "steps", "eval_steps": given.get("save_steps"), **given}
    elif keeps_best and "save_strategy" not in given:
        given["save_strategy"] = given.get("eval_strategy", own["eval_strategy"])
        if given["save_strategy"] == "steps" and "eval_steps" in given:
            given.setdefault("save_steps", given["eval_steps"])
    return {**own, **given}


_OF_VALIDATION = (
    "eval_strategy",
    "eval_steps",
    "eval_on_start",
    "load_best_model_at_end",
    "metric_for_best_model",
    "greater_is_better",
)


def scale_rates(stage: Stage, factor: float) -> Stage:
    """A stage with all learning rates multiplied by a factor."""
    return replace(
        stage,
        scale_lr=None if stage.scale_lr is None else factor * stage.scale_lr,
        offset_lr=None if stage.offset_lr is None else factor * stage.offset_lr,
        rate_factor=factor * stage.rate_factor,
        gate_lr=factor * stage.gate_lr,
    )
