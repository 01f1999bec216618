"""``localise``: finds the heads that matter by gradual pruning, decides how many are enough, and refits those."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from headedit.data.batches import Encoded
from headedit.edits.gate_set import Gate, all_gates, close, fix, heads_of
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
    levels_of,
    together,
)
from headedit.training.recipes.pruning import Pruning
from headedit.training.recipes.session import Session
from headedit.training.recipes.stage import Stage, scaled

_FEW = 100
"""Examples from which on one part held out says enough; of fewer, without a validation set, every part is in turn."""

_FOLDS = 4
"""How many parts those are."""

_FEWEST = 32
"""Examples from which on the refit's rates are doubled, if nothing else is asked for."""

_EXTRA = 4
"""Fewest of the gates closed last that a further search begins with beside the chosen ones."""

_GROWTH = 1.5
"""How many times as many gates, at least, the next refit has that checks the choice."""


@dataclass(frozen=True, kw_only=True)
class Localise(Recipe):
    """Search, choice, refit.

    The search trains vectors and gates of all heads. In a window of its steps gates are closed for good, level by
    level from all of them to one, those first whose vectors contribute least to the loss (⟨v, ∂L/∂v⟩², a running
    mean). At the end of every level the validation loss is taken down: the pruning path. The choice is the smallest
    number of gates whose validation loss is as good as the best. The refit fixes those gates open and all others
    closed, starts the vectors anew at higher rates, and trains on all examples, those that the recipe held out for
    itself included.

    Further searches begin with the gates of that choice, about as many that were closed last before it (at least 4),
    and half as many of the others: those along which the loss falls most steeply, with the chosen ones as the search
    left them. So a head that was closed too early comes back, and heads that only stood in for it go. Of every number
    of gates the better level stands in the path; a search that leaves the chosen level as it was is the last.

    The choice, unless ``heads`` makes it, is checked by refits: with half as many gates more, and again, as long as
    those do better on the validation examples.

    Without a validation set a share of the examples is held out for the searches and these refits. Of fewer than 100
    examples every quarter is held out in turn instead: there is one search for each and one with all, whose levels are
    judged by the losses of the others put together, and neither further searches nor refits that check the choice.
    Learning rates of offsets are in units of the root mean square of what their site is given, so that they fit any
    model.

    Fields:
        epochs: passes over the training set in the refit.
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
        searches: the most searches there are.
        search_epochs: passes over the training set in a search.
        standard_errors: a number of gates is as good as the best if its validation loss is at most so many standard
            errors above, of the differences example by example; 1 is the one-standard-error rule.
        tolerance: or if it gives up at most this share of what the best gains over the unedited model.
        budget: the largest share of the gates to keep; None for any.
        heads: the number of heads to keep, instead of a choice.
        valid_share: share of the examples that is held out where there is no validation set.
    """

    holds_out: ClassVar[bool] = True
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
    searches: int = 2
    search_epochs: int = 20
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
        self.check_above_zero("searches", "search_epochs")
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
            fix(session.edits.module, session.path.first(gates=session.path.chosen))
        session.run(self.refit_stage(len(session.train)), name="refit")
        if session.valid is not None:
            session.best_eval_loss = session.measure().mean().item()

    def refit_stage(self, examples: int) -> Stage:
        """How the vectors of the kept gates are trained, with so many examples."""
        stage = self.stage(scale_lr=self.scale_lr, offset_lr=self.offset_lr)
        rate = (1.0 if examples < _FEWEST else 2.0) if self.refit_rate is None else self.refit_rate
        return scaled(replace(stage, min_steps=self.min_steps, relative=True), rate)

    def find(self, session: Session, most: int) -> PruningPath:
        """The pruning path, with a choice of at most ``most`` gates."""
        parts = self._parts(session)
        with session.edits.disable_adapter():
            base = session.measure(parts[0][1]).mean().item()
        if len(parts) > 1:
            searches = [
                self._search(session, train, valid, f"search {i} of {len(parts)}")
                for i, (train, valid) in enumerate(parts, start=1)
            ]
            found = self._search(session, session.train, None, "search with all")
            found = replace(found, losses=together([search.losses for search in searches]))
        else:
            train, valid = parts[0]
            found = self._search(session, train, valid, "search 1")
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
        return path if len(parts) > 1 else self._grown(session, path, most, base, *parts[0])

    def _grown(
        self,
        session: Session,
        path: PruningPath,
        most: int,
        base: float,
        train: Sequence[Encoded],
        valid: Sequence[Encoded],
    ) -> PruningPath:
        """Half as many gates more, and again, as long as a refit with them is better on the validation examples.

        The larger levels of a path are measured early, at high rates; their refits are measured alike.
        """
        losses: dict[int, Tensor] = {}
        gates = path.chosen
        while True:
            session.restart()
            fix(session.edits.module, path.first(gates=gates))
            session.run(self.refit_stage(len(train)), name=f"refit of {gates}", train=train)
            losses[gates] = session.measure(valid)
            smaller = choose(losses, gates, base, self.standard_errors, self.tolerance)
            if smaller != gates:
                return replace(path, chosen=smaller)
            larger = [level.gates for level in path.levels if _GROWTH * gates <= level.gates <= most]
            if not larger:
                return replace(path, chosen=gates)
            gates = min(larger)

    def _search(
        self,
        session: Session,
        train: Sequence[Encoded],
        valid: Sequence[Encoded] | None,
        name: str,
        candidates: list[Gate] | None = None,
    ) -> Search:
        session.restart()
        module = session.edits.module
        if candidates is not None:
            chosen = set(candidates)
            close(module, [gate for gate in all_gates(module) if gate not in chosen])
        recorder = Recorder(session.edits, None if valid is None else lambda: session.measure(valid))
        pruning = Pruning(
            session.edits,
            smallest=1,
            window=(self.prune_from, self.prune_until),
            memory=self.memory,
            gates=candidates,
            recorder=recorder,
        )
        rates = self.stage(scale_lr=self.scale_lr, offset_lr=self.offset_lr, gate_lr=self.gate_lr)
        stage = replace(rates, epochs=self.search_epochs, min_steps=self.min_steps, relative=True)
        session.run(stage, name=name, objective=self.objective(), callbacks=[pruning], train=train)
        order = pruning.order()
        return Search({gates: order[:gates] for gates in pruning.levels}, recorder.vectors, recorder.losses)

    def _candidates(self, session: Session, found: Search, gates: int, train: Sequence[Encoded]) -> list[Gate]:
        """The gates of a level, as many that were closed last, and some along which the loss now falls most steeply."""
        level = Level(order=found.orders[gates], vectors=found.vectors[gates])
        extra = max(_EXTRA, gates)
        late = found.orders[min(size for size in found.orders if size >= min(gates + extra, max(found.orders)))]
        session.restart()
        put_level(session.edits, level)
        slopes = session.slopes(train)
        steep = sorted(slopes.keys() - {*level.order, *late}, key=lambda gate: slopes[gate], reverse=True)
        return sorted({*level.order, *late, *steep[: extra // 2]})

    def _parts(self, session: Session) -> list[tuple[Sequence[Encoded], Sequence[Encoded]]]:
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
