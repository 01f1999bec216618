"""Vectors alone: with the gates fixed as they are, or with every head edited and no gate."""

from dataclasses import dataclass, replace

from headedit.edits.gate_set import all_gates, freeze_gates, open_gates
from headedit.training.recipes.base import Recipe
from headedit.training.recipes.session import Session
from headedit.training.recipes.stage import Stage


@dataclass(frozen=True, kw_only=True)
class Refit(Recipe):
    """Fixes the gates at open or closed, as they are, and learns the vectors of the open ones.

    Fields:
        min_steps: optimiser steps below which there are more epochs.
        scale_lr: peak learning rate of the scales.
        offset_lr: peak learning rate of the offsets, in units of the root mean square of what their site is given.
        patience: epochs without a better validation loss before the run stops and the best edits are kept; None to
            go to the end.
    """

    min_steps: int = 300
    scale_lr: float = 0.1
    offset_lr: float = 0.2
    max_grad_norm: float = 0.3
    patience: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_above_zero("scale_lr", "offset_lr")

    def run(self, session: Session) -> None:
        """One stage without a penalty."""
        freeze_gates(session.edits.module, open_gates(session.edits.module))
        session.run(self.training(), name="refit", valid=session.valid)

    def training(self) -> Stage:
        """The stage."""
        stage = self.stage(scale_lr=self.scale_lr, offset_lr=self.offset_lr)
        return replace(stage, min_steps=self.min_steps, relative=True, patience=self.patience)


@dataclass(frozen=True, kw_only=True)
class Ungated(Refit):
    """The ablation without gates: every head is edited, for good; the fields are those of ``refit``."""

    def run(self, session: Session) -> None:
        """Opens every gate for good, then as ``refit``."""
        freeze_gates(session.edits.module, all_gates(session.edits.module))
        super().run(session)
