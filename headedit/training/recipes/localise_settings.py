"""The settings of ``localise``: its fields, their checks, its stages, and how much work a run is."""

from dataclasses import dataclass, replace
from typing import Any, ClassVar

from headedit.errors import HeadEditError
from headedit.training.loop.objective import Objective
from headedit.training.loop.schedules import LambdaSchedule
from headedit.training.recipes.base import Recipe
from headedit.training.recipes.dropout import SHARE_IN_SEARCH
from headedit.training.recipes.effort import EFFORTS, FOLDS_BELOW, EffortName, PlannedStage
from headedit.training.recipes.held_out import held_out_sizes
from headedit.training.recipes.model_selection import check_budget
from headedit.training.recipes.stage import Stage, length, scale_rates


@dataclass(frozen=True, kw_only=True)
class LocaliseSettings(Recipe):
    """The fields of ``localise``.

    Fields:
        effort: ``fast``, ``normal`` or ``thorough``: how much work is done where the fields below are None; see
            ``effort.EFFORTS``.
        epochs: passes over the training set in the refit; None for what the effort says, or as many as ``min_steps``
            needs.
        min_steps: least number of optimiser steps of a search and of a refit; there are more epochs if these give
            fewer. None for what the effort says, or for none where the number of epochs is given.
        scale_lr: peak learning rate of the scales; None for half of the default of the offsets.
        offset_lr: peak learning rate of the offsets, in units of the root mean square of their site's input; None for
            5/√n, at most 0.5, with n the number of values whose gates are not closed when a search or refit begins.
        gate_lr: peak learning rate of the gate logits in a search.
        refit_rate: factor on the learning rates in a refit.
        dropout: share of the heads whose edit each training pass of a refit leaves out, from 0 to below 1, and half of
            it in a search; see ``HeadEdits.head_dropout``. None for 0.2, falling to 0 as labelled tokens rise from as
            many as trained values to twice as many.
        lambda_offset: λ_a, the price of an open offset gate, in nats per token.
        lambda_scale: λ_m, the price of an open scale gate, in nats per token.
        lambda_schedule: schedule of both over a search: ``constant``, ``linear``, ``cyclic``, ``performance`` or
            ``exponential``.
        prune_from: share of a search's steps after which the first gates are closed.
        prune_until: share of a search's steps after which one gate is left.
        memory: weight of the previous running mean of contributions at each step, above 0 and below 1.
        searches: largest number of searches; None for what the effort says.
        search_epochs: passes over the training set in a search; None for what the effort says, or as many as
            ``min_steps`` needs.
        folds: with fewer than 100 examples and no validation set, the number of parts that are held out in turn; 1 for
            one held-out part, None for what the effort says.
        checks: whether refits check the chosen number of gates; None for what the effort says.
        standard_errors: a number of gates is as good as the best if its validation loss is at most this many standard
            errors of the differences, example by example, above it; 1 is the one-standard-error rule.
        tolerance: it is also as good if it loses at most this share of the best one's gain over the unedited model.
        budget: largest share of the gates to keep; None for no limit.
        heads: number of heads to keep; None to choose it by the validation loss.
        valid_share: share of the examples that is held out if there is no validation set.
    """

    holds_out: ClassVar[bool] = True
    effort: EffortName = "normal"
    epochs: int | None = None
    min_steps: int | None = None
    scale_lr: float | None = None
    offset_lr: float | None = None
    gate_lr: float = 0.05
    refit_rate: float = 1.0
    dropout: float | None = None
    max_grad_norm: float = 0.3
    lambda_offset: float = 1e-3
    lambda_scale: float = 1e-3
    lambda_schedule: LambdaSchedule = "constant"
    prune_from: float = 0.4
    prune_until: float = 0.9
    memory: float = 0.95
    searches: int | None = None
    search_epochs: int | None = None
    folds: int | None = None
    checks: bool | None = None
    standard_errors: float = 0.25
    tolerance: float = 0.005
    budget: float | None = None
    heads: int | None = None
    valid_share: float = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_above_zero("scale_lr", "offset_lr", "gate_lr", "refit_rate", "searches", "search_epochs", "folds")
        self.check_share_or_zero("dropout")
        self.check_share("prune_from", "prune_until", "memory", "valid_share")
        check_budget(self.budget)
        if self.prune_from >= self.prune_until:
            raise HeadEditError(f"prune_until: found {self.prune_until}, expected more than prune_from.")
        for name in ("standard_errors", "tolerance"):
            if getattr(self, name) < 0:
                raise HeadEditError(f"{name}: found {getattr(self, name)}, expected 0 or more.")
        if self.heads is not None and self.budget is not None:
            raise HeadEditError("heads and budget: give one of them.")
        self.objective()

    def setting(self, name: str) -> Any:
        """The value of a field that the effort sets where it is None."""
        given = getattr(self, name)
        return getattr(EFFORTS[self.effort], name) if given is None else given

    def length(self, name: str) -> dict[str, Any]:
        """The fields of a stage that say how long it is, by the field with its passes, which is exact where given."""
        effort = EFFORTS[self.effort]
        return length(getattr(self, name), self.min_steps, epochs=getattr(effort, name), steps=effort.min_steps)

    def objective(self) -> Objective:
        """The penalty of a search."""
        return Objective(
            lambda_offset=self.lambda_offset, lambda_scale=self.lambda_scale, schedule=self.lambda_schedule
        )

    def search_stage(self) -> Stage:
        """The stage that trains vectors and gates while gates are closed."""
        rates = self.stage(scale_lr=self.scale_lr, offset_lr=self.offset_lr, gate_lr=self.gate_lr)
        length = self.length("search_epochs")
        return replace(rates, **length, relative=True, dropout=self.dropout, dropout_factor=SHARE_IN_SEARCH)

    def refit_stage(self) -> Stage:
        """The stage that trains the vectors of the kept gates."""
        stage = self.stage(scale_lr=self.scale_lr, offset_lr=self.offset_lr)
        return scale_rates(
            replace(stage, **self.length("epochs"), relative=True, dropout=self.dropout), self.refit_rate
        )

    def folds_of(self, examples: int) -> int:
        """The number of parts that are held out in turn without a validation set; 1 for one held-out part."""
        return min(self.setting("folds"), examples) if examples < FOLDS_BELOW else 1

    def plan(self, examples: int, *, validated: bool, batches_per_step: int = 1) -> list[PlannedStage]:
        """The stages of a run, without refits that check the choice; there can be fewer searches.

        Args:
            examples: number of training examples.
            validated: whether there is a validation set.
            batches_per_step: processes × ``gradient_accumulation_steps``.
        """
        folds = self.folds_of(examples)
        sizes = [examples] if validated else held_out_sizes(examples, folds, self.valid_share)
        sizes = [*sizes, examples] if folds > 1 and not validated else sizes * self.setting("searches")
        named = [("search", self.search_stage(), size) for size in sizes] + [("refit", self.refit_stage(), examples)]
        return [PlannedStage.of(name, stage, size, examples, batches_per_step) for name, stage, size in named]
