"""``ist`` and ``rst`` (Yao et al., Findings of EMNLP 2024, arXiv 2410.11772): each step trains a few layers."""

from dataclasses import dataclass, replace
from typing import ClassVar

from headedit.edits.gate_set import all_gates, freeze_gates
from headedit.errors import HeadEditError
from headedit.training.recipes.refit import Refit
from headedit.training.recipes.session import Session
from headedit.training.sparse.sparse_tuning import SparseTuning


@dataclass(frozen=True, kw_only=True)
class Ist(Refit):
    """Importance-aware sparse tuning: edits every head, without gates, and trains a few layers per step.

    Every step trains a share of the layers, drawn by scores that roll-outs update. The callback
    ``headedit.SparseTuning`` does the same for any PEFT model in any Trainer.

    Fields:
        layer_share: share of the layers that each step trains, above 0 and at most 1.
    """

    importance: ClassVar[bool] = True
    layer_share: float = 0.25

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.layer_share <= 1:
            raise HeadEditError(f"layer_share: found {self.layer_share}, expected a share above 0 and at most 1.")

    def run(self, session: Session) -> None:
        """Fixes every gate open, then runs one stage with the callback."""
        freeze_gates(session.edits.module, all_gates(session.edits.module))
        sparse = SparseTuning(session.edits, importance=self.importance, share=self.layer_share)
        try:
            session.train_stage(
                replace(self.vector_stage(), moved=self.layer_share),
                name="sparse",
                callbacks=[sparse],
                valid=session.valid,
            )
        finally:
            sparse.release()


@dataclass(frozen=True, kw_only=True)
class Rst(Ist):
    """Random sparse tuning: ``ist`` with layers drawn uniformly, without scores."""

    importance: ClassVar[bool] = False
