"""Logistic probes, one per head, fitted together by Newton's method (ITI, Li et al. 2023, arXiv 2306.03341)."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize, pad, softplus

_STEPS, _HALVINGS, _CONVERGED = 100, 30, 1e-16


def fit_probes(x: Tensor, labels: Tensor, l2: float) -> Tensor:
    """Minimises Σ log(1 + exp(−y·(w·x + b))) + l2/2·‖w‖² over the examples, for every head at once, y = ±1.

    By Newton steps, each halved for the heads whose loss would not fall; nothing is random. Of features that are wider
    than there are examples, the steps are taken in the span of the examples, which holds the minimum.

    Args:
        x: features, [heads, examples, width], double precision.
        labels: 0 or 1 for each example, [examples].
        l2: above 0, so that there is one minimum even if the classes can be separated.

    Returns:
        w followed by b, [heads, width + 1].
    """
    if x.shape[-1] > x.shape[-2]:
        basis = torch.linalg.qr(x.mT).Q  # [heads, width, examples]
        w = fit_probes(x @ basis, labels, l2)
        return torch.cat([(basis @ w[:, :-1, None]).squeeze(-1), w[:, -1:]], -1)
    x, truth = pad(x, (0, 1), value=1.0), labels.to(x)
    ridge = x.new_full((x.shape[-1],), l2)
    ridge[-1] = 0

    def loss(w: Tensor) -> Tensor:
        return softplus((1 - 2 * truth) * _scores(x, w)).sum(-1) + (ridge * w.square()).sum(-1) / 2

    w = x.new_zeros(len(x), x.shape[-1])
    for _ in range(_STEPS):
        p = torch.sigmoid(_scores(x, w))  # [heads, examples]
        gradient = ((p - truth)[:, None] @ x).squeeze(1) + ridge * w
        curvature = (x * (p * (1 - p))[..., None]).mT @ x + torch.diag(ridge + _CONVERGED)
        step = torch.linalg.solve(curvature, gradient)
        gain = (gradient * step).sum(-1)  # twice the expected fall of the loss
        now, size = loss(w), torch.ones_like(gain)
        for _ in range(_HALVINGS):
            short = loss(w - size[:, None] * step) > now - 1e-4 * size * gain + 1e-14 * now
            if not short.any():
                break
            size = torch.where(short, size / 2, size)
        w = w - size[:, None] * step
        if (gain <= _CONVERGED * len(truth)).all():
            break
    return w


@dataclass(frozen=True)
class Probes:
    """Logistic probes on the standardised outputs of heads.

    Fields:
        mean, spread: of the outputs that they were fitted on, [heads, 1, width]; the spread of a constant is 1.
        weights: w followed by b, [heads, width + 1].
    """

    mean: Tensor
    spread: Tensor
    weights: Tensor

    @staticmethod
    def fit(z: Tensor, labels: Tensor, l2: float) -> "Probes":
        """Fits a probe to each head.

        Args:
            z: outputs of the heads, [heads, examples, width], double precision.
            labels: 0 or 1 for each example, [examples].
            l2: see ``fit_probes``.
        """
        spread = z.std(1, correction=0, keepdim=True)
        mean, spread = z.mean(1, keepdim=True), torch.where(spread > 0, spread, 1)
        return Probes(mean, spread, fit_probes((z - mean) / spread, labels, l2))

    def right(self, z: Tensor, labels: Tensor) -> Tensor:
        """Which of some outputs, [heads, examples, width], each probe classifies correctly, [heads, examples]."""
        scores = _scores(pad((z - self.mean) / self.spread, (0, 1), value=1.0), self.weights)
        return (scores > 0) == (labels == 1)

    def directions(self) -> Tensor:
        """The unit vectors along which the probes' scores rise fastest, [heads, width]; 0 for a silent head.

        A step is as long as it is in standard deviations of each coordinate, as it was for the probes; so coordinates
        that hardly vary are hardly moved.
        """
        return unit(self.weights[:, :-1] * self.spread.squeeze(1))


def held_out_accuracy(z: Tensor, labels: Tensor, train: Tensor, valid: Tensor, l2: float) -> Tensor:
    """Share of the held-out examples that each head's probe classifies correctly, [heads].

    Args:
        z: outputs of the heads, [heads, examples, width], double precision.
        labels: 0 or 1 for each example, [examples].
        train, valid: indices of the examples to fit on, which also give the scale of the features, and held out.
        l2: see ``fit_probes``.
    """
    probes = Probes.fit(z[:, train], labels[train], l2)
    return probes.right(z[:, valid], labels[valid]).double().mean(-1)


def unit(vectors: Tensor) -> Tensor:
    """Vectors, [..., width], with length 1; 0 stays 0."""
    return normalize(vectors, dim=-1, eps=torch.finfo(vectors.dtype).tiny)


def _scores(x: Tensor, w: Tensor) -> Tensor:
    return (x @ w[..., None]).squeeze(-1)
