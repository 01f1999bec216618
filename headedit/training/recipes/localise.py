"""``localise``: finds the heads that matter by gradual pruning, chooses how many are enough, and refits those."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from headedit.data.batches import Encoded
from headedit.edits.gate_set import GateIndex, all_gates, close, freeze_gates, heads_of, release_gates
from headedit.errors import HeadEditError
from headedit.runs.pruning_path import Level, PruningPath, put_level
from headedit.training.loop.objective import Objective
from headedit.training.loop.schedules import LambdaSchedule
from headedit.training.recipes.base import Recipe
from headedit.training.recipes.model_selection import (
    Recorder,
    Search,
    allowed_by,
    check_budget,
    choose,
    concatenate,
    levels_of,
)
from headedit.training.recipes.pruning import Pruning
from headedit.training.recipes.session import Session
from headedit.training.recipes.stage import Stage, length, scale_rates

_FOLDS_BELOW = 100
"""With fewer training examples than this and no validation set, k-fold cross-validation replaces one held-out part."""

_FOLDS = 4
"""k, the number of folds."""

_SLOW_REFIT_BELOW = 32
"""With fewer training examples than this, the refit's learning rates are not doubled, unless ``refit_rate`` is set."""

_LEAST_EXTRA = 4
"""Least number of the gates closed last that a further search adds to the chosen ones."""

_NEXT_REFIT = 1.5
"""Least ratio of the number of gates of one refit that checks the choice to that of the one before."""


@dataclass(frozen=True, kw_only=True)
class Localise(Recipe):
    """Finds the heads that matter, chooses how many are enough, and trains their edits again.

    Search: vectors and gates of all heads are trained. In a window of the steps, gates are closed for good, level by
    level from all of them down to one, those first whose vectors contribute least to the loss (⟨v, ∂L/∂v⟩², a running
    mean). At the end of every level its validation loss is recorded: this is the pruning path.

    Choice: the smallest number of gates whose validation loss is as good as the best. Unless ``heads`` sets the number,
    refits check it: with half as many gates more, and again, as long as these do better on the validation examples.

    Refit: the chosen gates are fixed open and all others closed; the vectors start again, at higher learning rates, and
    are trained on all examples, including those that the recipe held out.

    Further searches start with the chosen gates, about as many that were closed last before them (at least 4), and half
    as many of the others: those with the largest gradient, given the chosen ones as the search left them. A head that
    was closed too early can so return, and heads that only replaced it are dropped. For every number of gates the path
    keeps the better level. The searches end when one leaves the chosen level unchanged.

    Without a validation set, a share of the examples is held out for the searches and the refits that check the choice.
    With fewer than 100 examples, 4-fold cross-validation replaces it: there is one search per fold and one with all
    examples, whose levels are judged by the losses of the folds together; there are no further searches and no refits
    that check the choice. Learning rates of offsets are in units of the root mean square of their site's input, so that
    they suit any model. Searches and refits start from the vectors that the edits have, such as those of
    ``headedit.steer``; gates that are open or closed for good, and not hardened, are searched as all others are.

    Fields:
        epochs: passes over the training set in the refit; None for 20, or as many as ``min_steps`` needs.
        min_steps: least number of optimiser steps of a search and of a refit; there are more epochs if these give
            fewer. None for 300, or for none where the number of epochs is given.
        scale_lr: peak learning rate of the scales in a search.
        offset_lr: peak learning rate of the offsets in a search, in units of the root mean square of their site's
            input.
        gate_lr: peak learning rate of the gate logits in a search.
        refit_rate: factor on the learning rates in a refit; None for 2, or 1 with fewer than 32 examples, which the
            higher rates would memorise.
        lambda_offset: λ_a, the price of an open offset gate, in nats per token.
        lambda_scale: λ_m, the price of an open scale gate, in nats per token.
        lambda_schedule: schedule of both over a search: ``constant``, ``linear``, ``cyclic``, ``performance`` or
            ``exponential``.
        prune_from: share of a search's steps after which the first gates are closed.
        prune_until: share of a search's steps after which one gate is left.
        memory: weight of the previous running mean of contributions at each step, above 0 and below 1.
        searches: largest number of searches.
        search_epochs: passes over the training set in a search; None for 20, or as many as ``min_steps`` needs.
        standard_errors: a number of gates is as good as the best if its validation loss is at most this many standard
            errors of the differences, example by example, above it; 1 is the one-standard-error rule.
        tolerance: it is also as good if it loses at most this share of the best one's gain over the unedited model.
        budget: largest share of the gates to keep; None for no limit.
        heads: number of heads to keep; None to choose it by the validation loss.
        valid_share: share of the examples that is held out if there is no validation set.
    """

    holds_out: ClassVar[bool] = True
    epochs: int | None = None
    min_steps: int | None = None
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
    searches: int = 2
    search_epochs: int | None = None
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
        self.check_above_zero("searches", *(["search_epochs"] if self.search_epochs is not None else []))
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
        """The penalty of a search."""
        return Objective(
            lambda_offset=self.lambda_offset, lambda_scale=self.lambda_scale, schedule=self.lambda_schedule
        )

    def run(self, session: Session) -> None:
        """Runs search, choice and refit; edits without gates are only refitted."""
        gates = all_gates(session.edits.module)
        total = len(heads_of(gates))
        if gates and self.heads is not None and not 1 <= self.heads <= total:
            raise HeadEditError(
                f"heads: found {self.heads}, expected 1 to {total}, the number of heads of these edits."
            )
        if gates:
            most = len(gates) if self.budget is None else allowed_by(self.budget, session.edits)
            session.path = self.find(session, most)
            if session.valid is None:
                session.held_out = self._held_out(session, session.path)
            session.restore_start()
            freeze_gates(session.edits.module, session.path.first(gates=session.path.chosen))
        session.train_stage(self.refit_stage(len(session.train)), name="refit")
        if session.valid is not None:
            session.best_eval_loss = session.example_losses().mean().item()

    def _held_out(self, session: Session, path: PruningPath) -> dict[str, Any] | None:
        """Figures of the chosen level, before the refit on all examples; see ``Session.held_out_figures``."""
        edited = path.level_of(path.chosen).loss
        if edited is None:
            return None
        parts = self._parts(session)
        rows = [row for _, valid in parts for row in valid]
        with session.edits.disable_adapter():
            base = session.example_losses(rows).mean().item()
        where = "of the training set" if len(parts) == 1 else f"in {len(parts)} folds"
        return {"examples": len(rows), "by": f"held out {where} by the recipe localise", "base": base, "edited": edited}

    def refit_stage(self, examples: int) -> Stage:
        """The stage that trains the vectors of the kept gates on a number of examples."""
        stage = self.stage(scale_lr=self.scale_lr, offset_lr=self.offset_lr)
        rate = (1.0 if examples < _SLOW_REFIT_BELOW else 2.0) if self.refit_rate is None else self.refit_rate
        return scale_rates(replace(stage, relative=True), rate)

    def find(self, session: Session, most: int) -> PruningPath:
        """Searches, and chooses at most ``most`` gates; returns the pruning path."""
        parts = self._parts(session)
        if len(parts) > 1:
            searches = [
                self._search(session, train, valid, f"search {i} of {len(parts)}")
                for i, (train, valid) in enumerate(parts, start=1)
            ]
            found = self._search(session, session.train, None, "search with all")
            found = replace(found, losses=concatenate([search.losses for search in searches]))
            base = self._base_loss(session, parts[0][1])
        else:
            train, valid = parts[0]
            found = self._search(session, train, valid, "search 1")
            base = self._base_loss(session, valid)
            for number in range(2, self.searches + 1):
                gates = choose(found.losses, most, base, self.standard_errors, self.tolerance)
                candidates = self._candidates(session, found, gates, train)
                if len(candidates) == len(all_gates(session.edits.module)):
                    break
                before = set(found.orders[gates])
                found = found.better(self._search(session, train, valid, f"search {number}", candidates))
                if set(found.orders[gates]) == before:
                    break
        path = PruningPath(levels_of(found.orders, found.vectors, found.losses), 0)
        if self.heads is not None:
            return replace(path, chosen=len(path.first(heads=self.heads)))
        path = replace(path, chosen=choose(found.losses, most, base, self.standard_errors, self.tolerance))
        return path if len(parts) > 1 else self._checked_choice(session, path, most, base, *parts[0])

    @staticmethod
    def _base_loss(session: Session, valid: Sequence[Encoded]) -> float:
        with session.edits.disable_adapter():
            return session.example_losses(valid).mean().item()

    def _checked_choice(
        self,
        session: Session,
        path: PruningPath,
        most: int,
        base: float,
        train: Sequence[Encoded],
        valid: Sequence[Encoded],
    ) -> PruningPath:
        """The path with a choice of half as many gates more, and again, as long as their refit has a lower loss.

        The levels of a path are not measured alike: the larger ones early in the search, at higher learning rates.
        Their refits are.
        """
        losses: dict[int, Tensor] = {}
        gates = path.chosen
        while True:
            session.restore_start()
            freeze_gates(session.edits.module, path.first(gates=gates))
            session.train_stage(self.refit_stage(len(train)), name=f"refit of {gates}", train=train)
            losses[gates] = session.example_losses(valid)
            smaller = choose(losses, gates, base, self.standard_errors, self.tolerance)
            if smaller != gates:
                return replace(path, chosen=smaller)
            larger = [level.gates for level in path.levels if _NEXT_REFIT * gates <= level.gates <= most]
            if not larger:
                return replace(path, chosen=gates)
            gates = min(larger)

    def _search(
        self,
        session: Session,
        train: Sequence[Encoded],
        valid: Sequence[Encoded] | None,
        name: str,
        candidates: list[GateIndex] | None = None,
    ) -> Search:
        session.restore_start()
        module = session.edits.module
        release_gates(module)
        if candidates is not None:
            chosen = set(candidates)
            close(module, [gate for gate in all_gates(module) if gate not in chosen])
        recorder = Recorder(session.edits, None if valid is None else lambda: session.example_losses(valid))
        pruning = Pruning(
            session.edits,
            smallest=1,
            window=(self.prune_from, self.prune_until),
            memory=self.memory,
            gates=candidates,
            recorder=recorder,
        )
        rates = self.stage(scale_lr=self.scale_lr, offset_lr=self.offset_lr, gate_lr=self.gate_lr)
        stage = replace(rates, **length(self.search_epochs, self.min_steps), relative=True)
        session.train_stage(stage, name=name, objective=self.objective(), callbacks=[pruning], train=train)
        order = pruning.order()
        return Search({gates: order[:gates] for gates in pruning.levels}, recorder.vectors, recorder.losses)

    def _candidates(self, session: Session, found: Search, gates: int, train: Sequence[Encoded]) -> list[GateIndex]:
        """The gates of a level, as many that were closed last before it, and some with the largest gradients."""
        level = Level(order=found.orders[gates], vectors=found.vectors[gates])
        extra = max(_LEAST_EXTRA, gates)
        late = found.orders[min(size for size in found.orders if size >= min(gates + extra, max(found.orders)))]
        session.restore_start()
        put_level(session.edits, level)
        gradients = session.gate_gradients(train)
        steep = sorted(gradients.keys() - {*level.order, *late}, key=lambda gate: gradients[gate], reverse=True)
        return sorted({*level.order, *late, *steep[: extra // 2]})

    def _parts(self, session: Session) -> list[tuple[Sequence[Encoded], Sequence[Encoded]]]:
        """Pairs of training and validation examples: the session's own, one with a share held out, or one per fold."""
        rows = session.train
        if session.valid is not None:
            return [(rows, session.valid)]
        if len(rows) < 2:
            raise HeadEditError("localise: found 1 example and no validation set, expected at least 2.")
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(session.seed)).tolist()
        if len(rows) >= _FOLDS_BELOW:
            cut = max(1, round(self.valid_share * len(rows)))
            held = [set(order[:cut])]
        else:
            folds = min(_FOLDS, len(rows))
            held = [set(order[i::folds]) for i in range(folds)]
        return [([rows[i] for i in order if i not in out], [rows[i] for i in order if i in out]) for out in held]
