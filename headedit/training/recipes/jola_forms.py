"""``jola-paper`` and ``jola-released``: JoLA as its paper prints it, and as its released code trains it.

Lai, Fraser, Titov, "Joint Localization and Activation Editing for Low-Resource Fine-Tuning", ICML 2025, arXiv
2502.01179; code ``wenlai-lavine/jola``.
"""

import math
from dataclasses import dataclass

import torch

from headedit.edits import HeadEdits
from headedit.errors import HeadEditError
from headedit.training.loop.schedules import LambdaSchedule, LRSchedule
from headedit.training.recipes.jola import Jola
from headedit.training.recipes.session import Session


@dataclass(frozen=True, kw_only=True)
class JolaPaper(Jola):
    """JoLA with the learning rates that the paper prints.

    One learning rate for vectors and gates, 5e-4 · 0.1 · e^(−0.01 t) after one epoch of warm-up; CE + λ_a·ΣP(g_a ≠ 0) +
    λ_m·ΣP(g_m ≠ 0); AdamW with ε 1e-6. All steps together move a value by at most 0.005, so that little is learned. The
    paper's gate in eval mode is its expectation, ``EditConfig(eval_gate="expectation")``, as in the config
    ``jola-paper``. No source states the λ of the paper's runs; those here are ours. The fields are those of ``jola``.
    """

    vector_lr: float = 5e-4
    gate_lr: float | None = None
    lr_schedule: LRSchedule = "exponential"


@dataclass(frozen=True, kw_only=True)
class JolaReleased(Jola):
    """JoLA as its released code trains it, step by step.

    The penalty is λ·P_a + (1 − λ)·P_m, divided by H and by L·H, with λ = 0.1 · e^(−0.01 t); log α starts from
    U(−√(6/(H + 1)), √(6/(H + 1))) in a layer of H heads; one learning rate for vectors and gates, cosine after 50 steps
    of warm-up; AdamW with ε 1e-8. As released, no gate can close. Three faults are left out: λ moves on in training
    steps alone and not in validation too, early stopping looks at the plain loss, and the base model is the one that
    was loaded, with an ``lm_head`` that stays as it is. The fields are those of ``jola``.

    Raises:
        HeadEditError: when it runs, if the edits do not have both vectors with a gate each.
    """

    adam_epsilon: float = 1e-8
    gate_lr: float | None = None
    warmup_steps: int | None = 50
    lambda_offset: float = 0.1
    lambda_schedule: LambdaSchedule = "exponential"
    released_objective: bool = True

    def start(self, session: Session) -> None:
        """Adds the noise to the vectors, and draws every gate's log α."""
        config = session.edits.config
        if config.vectors != "both" or config.gates != "separate":
            raise HeadEditError(
                "The recipe 'jola-released' needs both vectors with a gate each, as its code has no others: "
                "EditConfig(vectors='both', gates='separate'). The recipe 'jola' trains the others."
            )
        super().start(session)
        draw_gates(session.edits, session.seed)


@torch.no_grad()
def draw_gates(edits: HeadEdits, seed: int) -> None:
    """Sets every gate's log α as Xavier's uniform rule draws a matrix [H, 1]: from U(−√(6/(H + 1)), √(6/(H + 1)))."""
    generator = torch.Generator().manual_seed(seed)
    for gate in edits.gate_parameters():
        bound = math.sqrt(6 / (len(gate) + 1))
        gate.copy_(torch.empty(gate.shape).uniform_(-bound, bound, generator=generator))
