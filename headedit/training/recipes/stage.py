"""A stage: how vectors and gates are trained for a while."""

import math
from dataclasses import dataclass, replace
from typing import Any

from headedit.training.loop.schedules import LRSchedule, hf_name

_LOGS_AN_EPOCH = 5


@dataclass(frozen=True, kw_only=True)
class Stage:
    """How vectors and gates are trained for a while.

    Fields:
        epochs: passes over the examples.
        min_steps: optimiser steps below which there are more passes.
        batch_size: examples a step of one process; all of them where there are fewer. Several processes, and
            ``gradient_accumulation_steps``, multiply it.
        scale_lr: peak learning rate of the scales.
        offset_lr: peak learning rate of the offsets; in units of the site's activations if ``relative``.
        gate_lr: peak learning rate of the gate logits.
        relative: multiply ``offset_lr`` by the root mean square of what the site is given.
        lr_schedule: course of all rates after the warm-up.
        warmup_epochs: epochs of linear warm-up; None for a twentieth of the steps.
        adam_epsilon: ε of AdamW.
        weight_decay: of the vectors.
        max_grad_norm: clipping of the gradient's norm.
        patience: epochs without a better validation loss before the stage stops, and the best edits are kept; None
            to go to the end and keep the last.
    """

    epochs: int
    min_steps: int = 0
    batch_size: int
    scale_lr: float
    offset_lr: float
    gate_lr: float = 0.0
    relative: bool = False
    lr_schedule: LRSchedule = "cosine"
    warmup_epochs: float | None = None
    adam_epsilon: float = 1e-6
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    patience: int | None = None

    def arguments(self, examples: int, together: int, *, validated: bool) -> dict[str, Any]:
        """The fields of ``TrainingArguments`` that the stage decides.

        Args:
            examples: to learn from, at least one.
            together: batches whose gradients make one step: processes × ``gradient_accumulation_steps``.
            validated: whether there is a validation set, gone through every epoch.
        """
        batch = min(self.batch_size, examples)
        steps_an_epoch = math.ceil(examples / (batch * together))
        epochs = max(self.epochs, math.ceil(self.min_steps / steps_an_epoch))
        warmup = steps_an_epoch * epochs / 20 if self.warmup_epochs is None else self.warmup_epochs * steps_an_epoch
        stops = validated and self.patience is not None
        return {
            "num_train_epochs": epochs,
            "per_device_train_batch_size": batch,
            "per_device_eval_batch_size": 4 * batch,
            "learning_rate": self.scale_lr,
            "lr_scheduler_type": hf_name(self.lr_schedule),
            "warmup_steps": 0 if self.lr_schedule == "adaptive" else round(warmup),
            "adam_epsilon": self.adam_epsilon,
            "weight_decay": self.weight_decay,
            "max_grad_norm": self.max_grad_norm,
            "eval_strategy": "epoch" if validated else "no",
            "save_strategy": "epoch" if stops else "no",
            "load_best_model_at_end": stops,
            "metric_for_best_model": "eval_loss" if validated else None,
            "greater_is_better": False if validated else None,
            "logging_steps": max(1, steps_an_epoch // _LOGS_AN_EPOCH),
        }


def scaled(stage: Stage, factor: float) -> Stage:
    """The stage with all rates multiplied."""
    return replace(
        stage, scale_lr=factor * stage.scale_lr, offset_lr=factor * stage.offset_lr, gate_lr=factor * stage.gate_lr
    )
