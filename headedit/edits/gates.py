"""Hard-concrete gates: a learned scalar in [0, 1] that can be exactly 0 or exactly 1.

Louizos, Welling, Kingma, "Learning sparse neural networks through L0 regularization", ICLR 2018
(arXiv 1712.01312), equations 10 to 13. With logistic noise L = log u − log(1−u):

    s = σ((L + log α) / β)        g = clip(s·(ζ − γ) + γ, 0, 1)        P(g ≠ 0) = σ(log α − β·log(−γ/ζ))
"""

import functools
import math
from dataclasses import dataclass

import numpy
import torch
from torch import Tensor
from torch.nn import functional

SATURATED = 1e4
"""A log α at which a gate is exactly open (negated: exactly closed), in training and eval, with no gradient."""

_EPS = 1e-6
_NODES = 16


@dataclass(frozen=True)
class HardConcrete:
    """The distribution of a gate.

    Fields:
        temperature: β.
        low: γ, below 0.
        high: ζ, above 1.
    """

    temperature: float = 0.33
    low: float = -0.1
    high: float = 1.1

    def sample(self, log_alpha: Tensor, uniform: Tensor | None = None) -> Tensor:
        """One reparametrised sample per gate, in the same shape as ``log_alpha``.

        Args:
            log_alpha: of the gates.
            uniform: u, one per gate, from [0, 1); by default drawn here.
        """
        noise = _wide(torch.rand_like(log_alpha) if uniform is None else uniform).logit(eps=_EPS)
        return self._stretch(torch.sigmoid((noise + log_alpha) / self.temperature)).to(log_alpha.dtype)

    def clip(self, log_alpha: Tensor) -> Tensor:
        """The deterministic gate of Louizos et al., equation 13: clip(σ(log α)·(ζ − γ) + γ, 0, 1)."""
        return self._stretch(torch.sigmoid(_wide(log_alpha))).to(log_alpha.dtype)

    def expectation(self, log_alpha: Tensor) -> Tensor:
        """E[g], by Gauss-Legendre quadrature of E[g] = ∫₀¹ P(g > t) dt.

        P(g > t) = σ(log α − β·logit((t − γ)/(ζ − γ))) is smooth in t on [0, 1], so 16 nodes are exact to
        single precision.
        """
        logits, weights = _quadrature(self.low, self.high)
        wide = _wide(log_alpha).unsqueeze(-1)
        above = torch.sigmoid(wide - wide.new_tensor([self.temperature * logit for logit in logits]))  # P(g > t)
        return (wide.new_tensor(weights) * above).sum(-1).to(log_alpha.dtype)

    def open_probability(self, log_alpha: Tensor) -> Tensor:
        """P(g ≠ 0), equation 12, which the penalty sums."""
        return torch.sigmoid(log_alpha - self.temperature * math.log(-self.low / self.high))

    def _stretch(self, s: Tensor) -> Tensor:
        # a clamp, with the gradient in one operator where that of clamp takes five
        return functional.hardtanh(s * (self.high - self.low) + self.low, 0, 1)


@functools.cache
def _quadrature(low: float, high: float) -> tuple[tuple[float, ...], tuple[float, ...]]:
    nodes, weights = numpy.polynomial.legendre.leggauss(_NODES)
    share = ((nodes + 1) / 2 - low) / (high - low)
    return tuple(numpy.log(share / (1 - share)).tolist()), tuple((weights / 2).tolist())


def _wide(values: Tensor) -> Tensor:
    """In double precision, where the device has it.

    In single precision, the value of a sigmoid depends on whether a vectorised loop or its remainder computes it, and
    so on how many gates are computed together. Rounded from double precision it does not.
    """
    return values if values.device.type == "mps" else values.double()
