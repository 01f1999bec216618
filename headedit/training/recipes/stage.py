"""``Stage``: the settings of one stage of training, as arguments of transformers' Trainer."""

import math
from dataclasses import dataclass, replace
from typing import Any

from headedit.training.loop.schedules import LRSchedule, hf_name

_LOGS_PER_EPOCH = 5


@dataclass(frozen=True, kw_only=True)
class Stage:
    """The settings of one stage of training.

    Fields:
        epochs: passes over the examples.
        min_steps: least number of optimiser steps; there are more epochs if these give fewer.
        batch_size: examples per step of one process; all examples if there are fewer. Several processes, and
            ``gradient_accumulation_steps``, multiply it.
        scale_lr: peak learning rate of the scales.
        offset_lr: peak learning rate of the offsets; in units of the site's activations if ``relative``.
        gate_lr: peak learning rate of the gate logits.
        relative: whether ``offset_lr`` is multiplied by the root mean square of the site's input.
        lr_schedule: schedule of all learning rates after the warm-up.
        warmup_epochs: epochs of linear warm-up; None for a twentieth of the steps.
        adam_epsilon: ε of AdamW.
        weight_decay: weight decay of the vectors.
        max_grad_norm: the norm to which gradients are clipped.
        patience: epochs without a better validation loss after which the stage stops and the best edits are kept;
            None to run to the end and keep the last edits.
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

    def arguments(self, examples: int, batches_per_step: int, *, validated: bool) -> dict[str, Any]:
        """The fields of ``TrainingArguments`` that the stage sets.

        Args:
            examples: number of training examples, at least one.
            batches_per_step: processes × ``gradient_accumulation_steps``.
            validated: whether there is a validation after every epoch.
        """
        batch = min(self.batch_size, examples)
        steps_per_epoch = math.ceil(examples / (batch * batches_per_step))
        epochs = max(self.epochs, math.ceil(self.min_steps / steps_per_epoch))
        warmup = steps_per_epoch * epochs / 20 if self.warmup_epochs is None else self.warmup_epochs * steps_per_epoch
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
            "logging_steps": max(1, steps_per_epoch // _LOGS_PER_EPOCH),
        }


def scale_rates(stage: Stage, factor: float) -> Stage:
    """A stage with all learning rates multiplied by a factor."""
    return replace(
        stage, scale_lr=factor * stage.scale_lr, offset_lr=factor * stage.offset_lr, gate_lr=factor * stage.gate_lr
    )
