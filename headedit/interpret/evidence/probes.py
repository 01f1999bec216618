"""Logistic probes, one per head, fitted together by Newton's method (ITI, Li et al. 2023, arXiv 2306.03341)."""

import torch
from torch import Tensor
from torch.nn.functional import pad, softplus

_STEPS, _HALVINGS, _CONVERGED = 100, 30, 1e-16


def fit_probes(x: Tensor, labels: Tensor, l2: float) -> Tensor:
    """Minimises Σ log(1 + exp(−y·(w·x + b))) + l2/2·‖w‖² over the examples, for every head at once, y = ±1.

    By Newton steps, each halved for the heads whose loss would not fall; nothing is random.

    Args:
        x: features, [heads, examples, width], double precision.
        labels: 0 or 1 for each example, [examples].
        l2: above 0, so that there is one minimum even if the classes can be separated.

    Returns:
        w followed by b, [heads, width + 1].
    """
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


def held_out_accuracy(z: Tensor, labels: Tensor, train: Tensor, valid: Tensor, l2: float) -> Tensor:
    """Share of the held-out examples that each head's probe classifies correctly, [heads].

    Args:
        z: outputs of the heads, [heads, examples, width], double precision.
        labels: 0 or 1 for each example, [examples].
        train, valid: indices of the examples to fit on, which also give the scale of the features, and held out.
        l2: see ``fit_probes``.
    """
    seen = z[:, train]
    spread = seen.std(1, correction=0, keepdim=True)
    x = (z - seen.mean(1, keepdim=True)) / torch.where(spread > 0, spread, 1)
    scores = _scores(pad(x[:, valid], (0, 1), value=1.0), fit_probes(x[:, train], labels[train], l2))
    return ((scores > 0) == (labels[valid] == 1)).double().mean(-1)


def _scores(x: Tensor, w: Tensor) -> Tensor:
    return (x @ w[..., None]).squeeze(-1)
