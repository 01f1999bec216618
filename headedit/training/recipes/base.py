"""``Recipe``: the fields that every recipe has, their checks, and the method that runs it."""

from dataclasses import dataclass
from typing import ClassVar

from headedit.errors import HeadEditError
from headedit.io import strict
from headedit.training.loop.schedules import LRSchedule
from headedit.training.recipes.effort import PlannedStage
from headedit.training.recipes.session import Session
from headedit.training.recipes.stage import Stage, length


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A training method for edits; every field can be overridden, as in ``headedit.fit(..., epochs=5)``.

    Fields:
        epochs: passes over the training set. In recipes with ``min_steps`` the default is None: 20 passes, or as many
            as ``min_steps`` needs. A number that is given is exact, unless ``min_steps`` is given too.
        batch_size: examples per step of one process; several processes, and gradient accumulation, multiply it.
        lr_schedule: schedule of all learning rates after the warm-up: ``cosine``, ``linear``, ``cyclic``,
            ``adaptive`` (lowered when the validation loss stops falling), ``exponential``, or any of transformers'
            (``constant_with_warmup``, ``inverse_sqrt``, ``polynomial``, ...); ``warmup_steps`` acts with all of them.
        adam_epsilon: ε of AdamW.
        weight_decay: weight decay of the vectors; gates have none.
        max_grad_norm: the norm to which gradients are clipped.

    Class attributes:
        holds_out: whether the recipe holds out training examples for validation if there is no validation set.
    """

    holds_out: ClassVar[bool] = False
    epochs: int | None = 20
    batch_size: int = 8
    lr_schedule: LRSchedule = "cosine"
    adam_epsilon: float = 1e-6
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0

    def __post_init__(self) -> None:
        strict.check(self)
        if self.epochs is None and not hasattr(self, "min_steps"):
            raise HeadEditError("epochs: found None, expected a number above 0.")
        self.check_above_zero("batch_size", "max_grad_norm", "epochs")

    def check_above_zero(self, *names: str) -> None:
        """Raises a HeadEditError if one of these fields is not above 0; None is allowed."""
        for name in names:
            if getattr(self, name) is not None and not getattr(self, name) > 0:
                raise HeadEditError(f"{name}: found {getattr(self, name)}, expected a number above 0.")

    def check_zero_or_more(self, *names: str) -> None:
        """Raises a HeadEditError if one of these fields is below 0 or NaN."""
        for name in names:
            if not getattr(self, name) >= 0:
                raise HeadEditError(f"{name}: found {getattr(self, name)}, expected 0 or more.")

    def check_share(self, *names: str) -> None:
        """Raises a HeadEditError if one of these fields is not above 0 and below 1."""
        for name in names:
            if not 0 < getattr(self, name) < 1:
                raise HeadEditError(f"{name}: found {getattr(self, name)}, expected a share above 0 and below 1.")

    def check_share_or_zero(self, *names: str) -> None:
        """Raises a HeadEditError if one of these fields is below 0, or 1 or more; None is allowed."""
        for name in names:
            if getattr(self, name) is not None and not 0 <= getattr(self, name) < 1:
                raise HeadEditError(f"{name}: found {getattr(self, name)}, expected a share from 0 to below 1.")

    def stage(self, *, scale_lr: float | None, offset_lr: float | None, gate_lr: float = 0.0) -> Stage:
        """A stage with the fields of this recipe and these peak learning rates; None for their defaults."""
        return Stage(
            **length(self.epochs, getattr(self, "min_steps", 0)),
            batch_size=self.batch_size,
            scale_lr=scale_lr,
            offset_lr=offset_lr,
            gate_lr=gate_lr,
            lr_schedule=self.lr_schedule,
            adam_epsilon=self.adam_epsilon,
            weight_decay=self.weight_decay,
            max_grad_norm=self.max_grad_norm,
        )

    def plan(self, examples: int, *, validated: bool, batches_per_step: int = 1) -> list[PlannedStage]:
        """The stages of a run where there are several; empty where there is one.

        Args:
            examples: number of training examples.
            validated: whether there is a validation set.
            batches_per_step: processes × ``gradient_accumulation_steps``.
        """
        return []

    def run(self, session: Session) -> None:
        """Trains the session's edits."""
        raise NotImplementedError
