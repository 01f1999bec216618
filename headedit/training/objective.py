"""The objective: L = CE(response tokens) + λ_a · Σ P(g_a ≠ 0) + λ_m · Σ P(g_m ≠ 0).

JoLA (arXiv 2502.01179), section 3, with two independent λ. Each is the price of ONE open gate in nats of
the mean loss a token: a gate stays open if it saves more than that. The sum is not divided by the number of
heads or layers, so a λ means the same for a model of any size.
"""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from headedit.edits import HeadEdits
from headedit.errors import HeadEditError


@dataclass(frozen=True, kw_only=True)
class Objective:
    """The penalty on open gates.

    Fields:
        lambda_offset: λ_a, nats an open offset gate.
        lambda_scale: λ_m, nats an open scale gate.
        schedule: ``linear`` raises both from 0 to their value over the whole run, ``constant`` does not.
    """

    lambda_offset: float = 0.0
    lambda_scale: float = 0.0
    schedule: Literal["linear", "constant"] = "linear"

    def __post_init__(self) -> None:
        for name in ("lambda_offset", "lambda_scale"):
            if getattr(self, name) < 0:
                raise HeadEditError(f"{name}: found {getattr(self, name)}, expected 0 or more.")

    def weights(self, progress: float) -> tuple[float, float]:
        """(λ_a, λ_m) when a share ``progress`` of the run, 0 to 1, is done."""
        share = progress if self.schedule == "linear" else 1.0
        return share * self.lambda_offset, share * self.lambda_scale

    def penalty(self, edits: HeadEdits, progress: float) -> Tensor:
        """λ_a · Σ P(g_a ≠ 0) + λ_m · Σ P(g_m ≠ 0), a scalar."""
        offset, scale = self.weights(progress)
        return offset * edits.penalty("offset") + scale * edits.penalty("scale")
