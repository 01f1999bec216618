"""``refit`` and ``ungated``: train the vectors alone, of the open gates or of every head."""

from dataclasses import dataclass, replace

from headedit.edits.gate_set import all_gates, freeze_gates, open_gates
from headedit.training.recipes.base import Recipe
from headedit.training.recipes.session import Session
from headedit.training.recipes.stage import Stage


@dataclass(frozen=True, kw_only=True)
class Refit(Recipe):
    """Fixes every gate as it is, open or closed, and trains the vectors of the open ones.

    Fields:
        min_steps: least number of optimiser steps; there are more epochs if these give fewer. None for 300, or for none
            where ``epochs`` is given.
        scale_lr: peak learning rate of the scales; None for half of that of the offsets.
        offset_lr: peak learning rate of the offsets, in units of the root mean square of their site's input; None for
            5/√n, at most 0.5, with n the number of trained values.
        dropout: share of the heads whose edit each training pass leaves out, from 0 to below 1; see
            ``HeadEdits.head_dropout``. None for 0.2, falling to 0 as labelled tokens rise from as many as trained
            values to twice as many.
        patience: epochs without a better validation loss after which the run stops and the best edits are kept; None
            to run to the end and keep the last edits.
        early_stopping_threshold: nats per token by which a validation loss must be below the best one to count as
            better for ``patience``; the best edits are kept whatever it is.
    """

    epochs: int | None = None
    min_steps: int | None = None
    scale_lr: float | None = None
    offset_lr: float | None = None
    max_grad_norm: float = 0.3
    dropout: float | None = 0.0
    patience: int | None = None
    early_stopping_threshold: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_above_zero("scale_lr", "offset_lr")
        self.check_share_or_zero("dropout")
        self.check_zero_or_more("early_stopping_threshold")

    def run(self, session: Session) -> None:
        """Runs one stage, without a penalty."""
        freeze_gates(session.edits.module, open_gates(session.edits.module))
        session.train_stage(self.vector_stage(), name="refit", valid=session.valid)

    def vector_stage(self) -> Stage:
        """The stage that trains the vectors."""
        stage = self.stage(scale_lr=self.scale_lr, offset_lr=self.offset_lr)
        return replace(
            stage,
            relative=True,
            patience=self.patience,
            early_stopping_threshold=self.early_stopping_threshold,
            dropout=self.dropout,
        )


@dataclass(frozen=True, kw_only=True)
class Ungated(Refit):
    """The ablation without gates: edits every head. The fields are those of ``refit``, with dropout by default."""

    dropout: float | None = None

    def run(self, session: Session) -> None:
        """Fixes every gate open, then trains as ``refit``."""
        freeze_gates(session.edits.module, all_gates(session.edits.module))
        super().run(session)
