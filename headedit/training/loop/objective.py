"""The objective: L = CE(response tokens) + λ_a · Σ P(g_a ≠ 0) + λ_m · Σ P(g_m ≠ 0).

JoLA (arXiv 2502.01179), section 3, with two independent λ. Each λ is the price of ONE open gate, in nats per
token of the mean loss: a gate stays open if it lowers the loss by more than its price. The sum is not divided by
the number of heads or layers, so a λ means the same for a model of any size.
"""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from headedit.edits import HeadEdits
from headedit.errors import HeadEditError
from headedit.training.loop.schedules import LambdaSchedule, Moment, lambda_factor


class Penalty(Protocol):
    """A penalty that the Trainer adds to the loss on the response tokens."""

    def weights(self, moment: Moment) -> tuple[float, float]:
        """(λ_a, λ_m) at a moment of the run."""

    def penalty(self, edits: HeadEdits, moment: Moment) -> Tensor:
        """The penalty, a scalar in nats per token."""


@dataclass(frozen=True, kw_only=True)
class Objective:
    """The penalty on open gates: λ_a · Σ P(g_a ≠ 0) + λ_m · Σ P(g_m ≠ 0).

    A λ is the price of one open gate in nats per token; a gate stays open if it lowers the mean loss by more.

    Fields:
        lambda_offset: λ_a, nats per token for each open offset gate; 0 by default.
        lambda_scale: λ_m, nats per token for each open scale gate; 0 by default.
        schedule: how both change over the run: ``linear`` (from 0 to their full value), ``constant``, ``cyclic``,
            ``performance`` or ``exponential``; see ``headedit.training.loop.schedules.lambda_factor``.

    Raises:
        HeadEditError: a λ is negative or NaN.
    """

    lambda_offset: float = 0.0
    lambda_scale: float = 0.0
    schedule: LambdaSchedule = "linear"

    def __post_init__(self) -> None:
        for name in ("lambda_offset", "lambda_scale"):
            if not getattr(self, name) >= 0:
                raise HeadEditError(f"{name}: found {getattr(self, name)}, expected 0 or more.")

    def weights(self, moment: Moment) -> tuple[float, float]:
        """(λ_a, λ_m) at a moment of the run."""
        factor = lambda_factor(self.schedule, moment)
        return factor * self.lambda_offset, factor * self.lambda_scale

    def penalty(self, edits: HeadEdits, moment: Moment) -> Tensor:
        """λ_a · Σ P(g_a ≠ 0) + λ_m · Σ P(g_m ≠ 0), a scalar."""
        offset, scale = self.weights(moment)
        return offset * edits.penalty("offset") + scale * edits.penalty("scale")


@dataclass(frozen=True, kw_only=True)
class ReleasedObjective(Objective):
    """The penalty of JoLA's released code, for comparison: λ · P_a + (1 − λ) · P_m, divided by H and by L·H.

    The price of a scale gate therefore depends on that of an offset gate, and both on the model's size: about 3e-5
    nats per gate at 32 layers of 32 heads, too little to close any. ``lambda_offset`` is its λ; ``lambda_scale`` is
    not used.
    """

    def weights(self, moment: Moment) -> tuple[float, float]:
        """(λ, 1 − λ) at a moment of the run, before the two divisions."""
        factor = lambda_factor(self.schedule, moment) * self.lambda_offset
        return factor, 1.0 - factor

    def penalty(self, edits: HeadEdits, moment: Moment) -> Tensor:
        """(λ · Σ P(g_a ≠ 0) + (1 − λ) · Σ P(g_m ≠ 0)) / (H · L · H), a scalar."""
        heads = sum(site.heads for site in edits.sites)
        widest = max(site.heads for site in edits.sites)
        return super().penalty(edits, moment) / (heads * widest)
