"""``localise``: finds the heads that matter by gradual pruning, chooses how many are enough, and refits those."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from headedit.data.batches import Encoded
from headedit.edits.gate_set import GateIndex, all_gates, close, freeze_gates, heads_of, release_gates
from headedit.errors import HeadEditError
from headedit.runs.pruning_path import Level, PruningPath, put_level
from headedit.training.recipes.held_out import Part, held_out_parts
from headedit.training.recipes.localise_settings import LocaliseSettings
from headedit.training.recipes.model_selection import (
    Recorder,
    Search,
    allowed_by,
    choose,
    concatenate,
    levels_of,
)
from headedit.training.recipes.pruning import Pruning
from headedit.training.recipes.session import Session

_LEAST_EXTRA = 4
"""Least number of the gates closed last that a further search adds to the chosen ones."""

_NEXT_REFIT = 1.5
"""Least ratio of the number of gates of one refit that checks the choice to that of the one before."""


@dataclass(frozen=True, kw_only=True)
class Localise(LocaliseSettings):
    """Finds the heads that matter, chooses how many are enough, and trains their edits again.

    Search: vectors and gates of all heads are trained. In a window of the steps, gates are closed for good, level by
    level from all of them down to one, those first whose vectors contribute least to the loss (⟨v, ∂L/∂v⟩², a running
    mean). At the end of every level its validation loss is recorded: this is the pruning path.

    Choice: the smallest number of gates whose validation loss is as good as the best. Without a validation set, a share
    of the examples is held out for it.

    Refit: the chosen gates are fixed open and all others closed; the vectors start again and are trained on all
    examples, including those that the recipe held out.

    A thorough run checks the choice by refits, unless ``heads`` sets the number: with half as many gates more, and
    again, as long as these do better on the validation examples. It searches again, too: further searches start with
    the chosen gates, about as many that were closed last before them (at least 4), and half as many of the others:
    those with the largest gradient, given the chosen ones as the search left them. A head that was closed too early can
    so return, and heads that only replaced it are dropped. For every number of gates the path keeps the better level.
    The searches end when one leaves the chosen level unchanged.

    With fewer than 100 examples and no validation set, it validates in 4 folds: there is one search per fold and one
    with all examples, whose levels are judged by the losses of the folds together; there are no further searches and no
    refits that check the choice.

    Searches and refits start from the vectors that the edits have, such as those of ``headedit.steer``; gates that are
    open or closed for good, and not hardened, are searched as all others are.
    """

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
        session.train_stage(self.refit_stage(), name="refit")
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
            for number in range(2, self.setting("searches") + 1):
                gates = choose(found.losses, most, base, self.standard_errors, self.tolerance)
                candidates = self._candidates(session, found, gates, train)
                if len(candidates) == len(all_gates(session.edits.module)):
                    break
                before = set(found.orders[gates])
                found = found.better(self._search(session, train, valid, f"search {number}", candidates))
                if set(found.orders[gates]) == before:
                    break
        path = PruningPath(levels_of(found.orders, found.vectors, found.losses), 0, base_loss=base)
        if self.heads is not None:
            return replace(path, chosen=len(path.first(heads=self.heads)))
        path = replace(path, chosen=choose(found.losses, most, base, self.standard_errors, self.tolerance))
        unchecked = len(parts) > 1 or not self.setting("checks")
        return path if unchecked else self._checked_choice(session, path, most, base, *parts[0])

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
            session.train_stage(self.refit_stage(), name=f"refit of {gates}", train=train)
            losses[gates] = session.example_losses(valid)
            path = replace(path, refits={size: found.mean().item() for size, found in losses.items()})
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
        session.train_stage(
            self.search_stage(), name=name, objective=self.objective(), callbacks=[pruning], train=train
        )
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

    def _parts(self, session: Session) -> list[Part]:
        """Pairs of training and validation examples: the session's own, or parts of the training examples."""
        if session.valid is not None:
            return [(session.train, session.valid)]
        if len(session.train) < 2:
            raise HeadEditError("localise: found 1 example and no validation set, expected at least 2.")
        return held_out_parts(session.train, self.folds_of(len(session.train)), self.valid_share, session.seed)
