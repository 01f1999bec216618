"""``jola`` (Lai, Fraser, Titov, ICML 2025, arXiv 2502.01179): the paper's method with its released settings."""

from dataclasses import dataclass, replace

import torch

from headedit.edits import HeadEdits
from headedit.edits.gate_set import release_gates
from headedit.errors import HeadEditError
from headedit.training.loop.objective import Objective, ReleasedObjective
from headedit.training.loop.schedules import LambdaSchedule
from headedit.training.recipes.base import Recipe
from headedit.training.recipes.model_selection import allowed_by, check_budget
from headedit.training.recipes.pruning import Pruning
from headedit.training.recipes.session import Session


@dataclass(frozen=True, kw_only=True)
class Jola(Recipe):
    """JoLA: trains vectors and gates of all heads together, with a price on every open gate.

    The edit, the gates and the objective are the paper's: vectors from N(0, 1e-3), CE + λ_a·ΣP(g_a ≠ 0) +
    λ_m·ΣP(g_m ≠ 0) with λ rising from 0, AdamW with ε 1e-6, one epoch of warm-up, early stopping on the plain
    validation loss. Learning rate, cosine schedule, batch size, epochs and patience are those of the released code.
    With these rates a gate's logit moves by at most 1.3, so gates stay open; ``gate_lr=5e-2, vector_lr=2e-2`` lets
    gates close, and so does ``budget``. ``jola-paper`` has the paper's rates too, ``jola-released`` is the released
    code; see ``jola_forms``.

    Training starts from the edits as they are: gates that are open or closed for good, as after ``headedit.steer``, are
    learned again, unless they are hardened.

    Fields:
        vector_lr: peak learning rate of offsets and scales.
        gate_lr: peak learning rate of gate logits; None for that of the vectors.
        warmup_epochs: epochs of linear warm-up.
        warmup_steps: steps of linear warm-up, instead of ``warmup_epochs``; None to count epochs.
        lambda_offset: λ_a, the price of an open offset gate, in nats per token.
        lambda_scale: λ_m, the price of an open scale gate, in nats per token.
        lambda_schedule: schedule of both: ``linear``, ``constant``, ``cyclic``, ``performance`` or ``exponential``.
        budget: largest share of the gates that are open at the end; between 30 % and 70 % of the run, those with the
            lowest log α are closed for good. None for no limit.
        patience: epochs without a better validation loss after which the run stops and the best edits are kept; None
            to run to the end.
        early_stopping_threshold: nats per token by which a validation loss must be below the best one to count as
            better for ``patience``; the best edits are kept whatever it is.
        init_std: standard deviation of the noise that is added to the vectors at the start.
        released_objective: use the penalty of the released code, λ·P_a + (1 − λ)·P_m divided by H and by L·H, with
            ``lambda_offset`` as its λ; for comparison.
    """

    vector_lr: float = 5e-3
    gate_lr: float | None = 5e-3
    warmup_epochs: float = 1.0
    warmup_steps: int | None = None
    lambda_offset: float = 1e-3
    lambda_scale: float = 1e-3
    lambda_schedule: LambdaSchedule = "linear"
    budget: float | None = None
    patience: int | None = 2
    early_stopping_threshold: float = 0.0
    init_std: float = 1e-3
    released_objective: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_above_zero("vector_lr", "gate_lr")
        self.check_zero_or_more("early_stopping_threshold")
        check_budget(self.budget)
        if self.warmup_steps is not None and self.warmup_steps < 0:
            raise HeadEditError(f"warmup_steps: found {self.warmup_steps}, expected 0 or more.")
        self.objective()

    def objective(self) -> Objective:
        """The penalty on open gates."""
        cls = ReleasedObjective if self.released_objective else Objective
        return cls(lambda_offset=self.lambda_offset, lambda_scale=self.lambda_scale, schedule=self.lambda_schedule)

    def run(self, session: Session) -> None:
        """Runs one stage, with early stopping if there is no budget."""
        self.start(session)
        pruning = []
        if self.budget is not None:
            smallest = allowed_by(self.budget, session.edits)
            pruning.append(Pruning(session.edits, smallest=smallest, window=(0.3, 0.7), memory=0.0, by="gate"))
        gate_lr = self.vector_lr if self.gate_lr is None else self.gate_lr
        rates = self.stage(scale_lr=self.vector_lr, offset_lr=self.vector_lr, gate_lr=gate_lr)
        warmup = self.warmup_epochs
        if self.warmup_steps is not None:
            warmup = self.warmup_steps / rates.size(len(session.train), session.batches)[1]
        stage = replace(
            rates,
            warmup_epochs=warmup,
            patience=None if pruning else self.patience,
            early_stopping_threshold=self.early_stopping_threshold,
        )
        session.train_stage(stage, name="jola", objective=self.objective(), callbacks=pruning, valid=session.valid)

    def start(self, session: Session) -> None:
        """Lets gates that are fixed be learned again, and adds the noise to the vectors."""
        release_gates(session.edits.module)
        add_noise(session.edits, self.init_std, session.seed)


@torch.no_grad()
def add_noise(edits: HeadEdits, std: float, seed: int) -> None:
    """Adds noise from N(0, std²) to every vector, drawn from the seed."""
    generator = torch.Generator().manual_seed(seed)
    for vector in edits.vector_parameters():
        noise = torch.randn(vector.shape, generator=generator) * std
        vector.add_(noise.to(vector))
