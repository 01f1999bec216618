"""``localise``: finds the heads that matter by gradual pruning, decides how many are enough, and refits those."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from headedit.edits.support import all_gates, fix, heads_of
from headedit.errors import HeadEditError
from headedit.pruning_path import PruningPath
from headedit.training.choice import Recorder, allowed_by, check_budget, choose, levels_of
from headedit.training.encoding import Encoded
from headedit.training.objective import Objective
from headedit.training.pruning import Pruning
from headedit.training.recipes.base import Recipe
from headedit.training.schedules import LambdaSchedule
from headedit.training.session import Session, scaled

_FEW = 100
_FOLDS = 4
_FEWEST = 32


@dataclass(frozen=True, kw_only=True)
class Localise(Recipe):
    """Search, choice, refit.

    The search trains vectors and gates of all heads. In a window of its steps gates are closed for good, level by
    level from all of them to one, those first whose vectors contribute least to the loss (⟨v, ∂L/∂v⟩², a running
    mean). At the end of every level the validation loss is taken down: the pruning path. The choice is the smallest
    number of gates whose validation loss is as good as the best. The refit fixes those gates open and all others
    closed, starts the vectors anew at higher rates, and trains on all examples, those that the recipe held out for
    itself included.

    Without a validation set a share of the examples is held out for the search; of fewer than 100 examples every part
    is held out in turn, and the losses are put together. Learning rates of offsets are in units of the root mean
    square of what their site is given, so that they fit any model.

    Fields:
        epochs: passes over the training set, in the search and again in the refit.
        min_steps: optimiser steps below which there are more epochs, in each of the two.
        scale_lr: peak learning rate of the scales in the search.
        offset_lr: peak learning rate of the offsets in the search, in units of their site's activations.
        gate_lr: peak learning rate of the gate logits in the search.
        refit_rate: what the rates are multiplied with in the refit; None for 2, and for 1 with fewer than 32 examples,
            which the higher rates learn by heart.
        lambda_offset: λ_a, the price of an open offset gate in nats a token.
        lambda_scale: λ_m, the price of an open scale gate.
        lambda_schedule: course of both over the search.
        prune_from: share of the search's steps after which the first gates are closed.
        prune_until: share after which one gate is left.
        memory: how much of the running mean of contributions a step keeps.
        standard_errors: a number of gates is as good as the best if its validation loss is at most so many standard
            errors above, of the differences example by example; 1 is the one-standard-error rule.
        tolerance: or if it gives up at most this share of what the best gains over the unedited model.
        budget: the largest share of the gates to keep; None for any.
        heads: the number of heads to keep, instead of a choice.
        valid_share: share of the examples that is held out where there is no validation set.
    """

    min_steps: int = 300
    scale_lr: float = 0.05
    offset_lr: float = 0.1
    gate_lr: float = 0.05
    refit_rate: float | None = None
    max_grad_norm: float = 0.3
    lambda_offset: float = 1e-3
    lambda_scale: float = 1e-3
    lambda_schedule: LambdaSchedule = "constant"
    prune_from: float = 0.2
    prune_until: float = 0.9
    memory: float = 0.95
    standard_errors: float = 0.25
    tolerance: float = 0.005
    budget: float | None = None
    heads: int | None = None
    valid_share: float = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_above_zero(
            "scale_lr", "offset_lr", "gate_lr", *(["refit_rate"] if self.refit_rate is not None else [])
        )
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

    def objective(self) -> Objective:
        """The penalty of the search."""
        return Objective(
            lambda_offset=self.lambda_offset, lambda_scale=self.lambda_scale, schedule=self.lambda_schedule
        )

    def run(self, session: Session) -> None:
        """The three parts; edits without gates are only trained."""
        gates = all_gates(session.edits.module)
        total = len(heads_of(gates))
        if gates and self.heads is not None and not 1 <= self.heads <= total:
            raise HeadEditError(
                f"heads: found {self.heads}, expected 1 to {total}, the number of heads of these edits."
            )
        if gates:
            most = len(gates) if self.budget is None else allowed_by(self.budget, session.edits)
            session.path = self.find(session, most)
            session.restart()
            fix(session.edits.module, session.path.order[: session.path.chosen])
        stage = replace(
            self.stage(scale_lr=self.scale_lr, offset_lr=self.offset_lr), min_steps=self.min_steps, relative=True
        )
        rate = (1.0 if len(session.train) < _FEWEST else 2.0) if self.refit_rate is None else self.refit_rate
        session.run(scaled(stage, rate), name="refit")
        if session.valid is not None:
            session.best_eval_loss = session.measure().mean().item()

    def find(self, session: Session, most: int) -> PruningPath:
        """The pruning path, with a choice of at most ``most`` gates."""
        parts = self._parts(session)
        searches = []
        for i, (train, valid) in enumerate(parts):
            name = "search" if len(parts) == 1 else f"search {i + 1} of {len(parts)}"
            searches.append(self._search(session, train, valid, name))
        losses = _together([recorder.losses for _, recorder in searches])
        if len(parts) > 1:
            searches.append(self._search(session, session.train, None, "search with all"))
        pruning, recorder = searches[-1]
        order = pruning.order()
        path = PruningPath(levels_of(order, pruning.levels, losses), order, 0, recorder.vectors)
        if self.heads is not None:
            return replace(path, chosen=len(path.first(heads=self.heads)))
        with session.edits.disable_adapter():
            base = session.measure(parts[0][1]).mean().item()
        return replace(path, chosen=choose(losses, most, base, self.standard_errors, self.tolerance))

    def _search(
        self, session: Session, train: list[Encoded], valid: list[Encoded] | None, name: str
    ) -> tuple[Pruning, Recorder]:
        session.restart()
        measure = None if valid is None else lambda: session.measure(valid)
        recorder = Recorder(session.edits, measure)
        window = (self.prune_from, self.prune_until)
        pruning = Pruning(session.edits, smallest=1, window=window, memory=self.memory, reached=recorder.reached)
        rates = self.stage(scale_lr=self.scale_lr, offset_lr=self.offset_lr, gate_lr=self.gate_lr)
        stage = replace(rates, min_steps=self.min_steps, relative=True)
        session.run(stage, name=name, objective=self.objective(), callbacks=[pruning], train=train)
        return pruning, recorder

    def _parts(self, session: Session) -> list[tuple[list[Encoded], list[Encoded]]]:
        """Pairs of training and validation examples: the session's own, one share held out, or each in turn."""
        rows = session.train
        if session.valid is not None:
            return [(rows, session.valid)]
        if len(rows) < 2:
            raise HeadEditError("localise: found 1 example and no validation set, expected at least 2.")
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(session.seed)).tolist()
        if len(rows) >= _FEW:
            cut = max(1, round(self.valid_share * len(rows)))
            held = [set(order[:cut])]
        else:
            folds = min(_FOLDS, len(rows))
            held = [set(order[i::folds]) for i in range(folds)]
        return [([rows[i] for i in order if i not in out], [rows[i] for i in order if i in out]) for out in held]


def _together(losses: list[dict[int, Tensor]]) -> dict[int, Tensor]:
    """For each number of gates that all searches reached: the losses of all their examples."""
    return {gates: torch.cat([found[gates] for found in losses]) for gates in losses[0]}
