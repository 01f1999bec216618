"""How much work ``localise`` does: three settings, from one short search to several long ones."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from headedit.training.recipes.stage import Stage

EffortName = Literal["fast", "normal", "thorough"]

FOLDS_BELOW = 100
"""With fewer training examples than this and no validation set, a thorough run validates in folds."""


@dataclass(frozen=True, kw_only=True)
class Effort:
    """The work of a run of ``localise``.

    Fields:
        search_epochs: passes over the examples in a search.
        epochs: passes over the examples in a refit.
        min_steps: least number of optimiser steps of each.
        searches: largest number of searches on one held-out part.
        folds: number of parts that are held out in turn where there are few examples; 1 for one held-out part.
        checks: whether refits check the chosen number of gates.
    """

    search_epochs: int
    epochs: int
    min_steps: int
    searches: int
    folds: int
    checks: bool


EFFORTS: dict[EffortName, Effort] = {
    "fast": Effort(search_epochs=4, epochs=4, min_steps=100, searches=1, folds=1, checks=False),
    "normal": Effort(search_epochs=8, epochs=8, min_steps=300, searches=1, folds=1, checks=False),
    "thorough": Effort(search_epochs=20, epochs=20, min_steps=300, searches=2, folds=4, checks=True),
}


@dataclass(frozen=True)
class PlannedStage:
    """A stage of a run that has not begun.

    Fields:
        name: what it is.
        steps: optimiser steps.
        passes: passes over all training examples that its steps are worth.
    """

    name: str
    steps: int
    passes: float

    @staticmethod
    def of(name: str, stage: Stage, size: int, examples: int, batches_per_step: int) -> "PlannedStage":
        """The stage on some of the examples.

        Args:
            name: what it is.
            stage: its settings.
            size: number of examples that it trains on.
            examples: number of all training examples.
            batches_per_step: processes × ``gradient_accumulation_steps``.
        """
        epochs, per_epoch = stage.size(size, batches_per_step)
        return PlannedStage(name, epochs * per_epoch, epochs * size / examples)


def planned_text(stages: Sequence[PlannedStage]) -> str:
    """What a run will do, such as ``search 300 steps, refit 300 steps: 27 passes over the examples``."""
    named = [f"{stage.name} {stage.steps:,} steps" for stage in stages]
    counted = (f"{named.count(text)} × {text}" if named.count(text) > 1 else text for text in dict.fromkeys(named))
    return f"{', '.join(counted)}: {sum(stage.passes for stage in stages):.0f} passes over the examples"
