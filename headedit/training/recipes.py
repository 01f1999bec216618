"""Recipes: named sets of choices for a run. Each is a dataclass whose fields can be overridden one by one."""

from dataclasses import dataclass
from typing import Any, Literal

from headedit.errors import HeadEditError, suggest
from headedit.specs import strict
from headedit.training.objective import Objective


@dataclass(frozen=True, kw_only=True)
class Jola:
    """JoLA (Lai, Fraser, Titov, ICML 2025, arXiv 2502.01179) with gates that can close.

    The objective, the gates, AdamW with ε 1e-6, one epoch of warm-up, cosine decay, batches of 8, 20 epochs
    and early stopping are the paper's and its released code's. Not theirs: the gates have a learning rate
    of their own, without which their logits cannot travel far enough to close; the two λ are independent;
    the validation loss that stops the run holds no penalty.

    Fields:
        epochs: passes over the training set.
        batch_size: examples a step.
        vector_lr: peak learning rate of offsets and scales.
        gate_lr: peak learning rate of gate logits.
        lr_schedule: course of both after the warm-up, by its name in transformers.
        warmup_epochs: epochs of linear warm-up.
        adam_epsilon: ε of AdamW.
        lambda_offset: λ_a, the price of an open offset gate in nats a token.
        lambda_scale: λ_m, the price of an open scale gate.
        lambda_schedule: ``linear`` from 0 over the run, or ``constant``.
        patience: epochs without a better validation loss before the run stops; None to never stop.
        max_grad_norm: clipping of the gradient's norm.
    """

    epochs: int = 20
    batch_size: int = 8
    vector_lr: float = 2e-2
    gate_lr: float = 5e-2
    lr_schedule: Literal["cosine", "linear", "constant_with_warmup", "inverse_sqrt"] = "cosine"
    warmup_epochs: float = 1.0
    adam_epsilon: float = 1e-6
    lambda_offset: float = 1e-2
    lambda_scale: float = 1e-2
    lambda_schedule: Literal["linear", "constant"] = "linear"
    patience: int | None = 5
    max_grad_norm: float = 1.0

    def __post_init__(self) -> None:
        strict.check(self)
        for name in ("epochs", "batch_size", "vector_lr", "gate_lr"):
            if getattr(self, name) <= 0:
                raise HeadEditError(f"{name}: found {getattr(self, name)}, expected a number above 0.")
        self.objective()

    def objective(self) -> Objective:
        """The penalty of this recipe."""
        return Objective(
            lambda_offset=self.lambda_offset, lambda_scale=self.lambda_scale, schedule=self.lambda_schedule
        )


RECIPES = {"jola": Jola}


def make_recipe(name: str, overrides: dict[str, Any]) -> Jola:
    """The recipe of a name, with some of its fields changed.

    Raises:
        HeadEditError: there is no such recipe or field, or a value is impossible.
    """
    if name not in RECIPES:
        raise HeadEditError(f"There is no recipe '{name}'.{suggest(name, RECIPES)}")
    return strict.build(RECIPES[name], overrides, f"recipe {name}")
