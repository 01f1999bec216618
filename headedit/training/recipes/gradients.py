"""The size of each site's input, and the gradient of the loss along each gate's vectors, before any head is chosen."""

import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from itertools import accumulate
from typing import Any

import torch
from einops import reduce
from torch import Tensor

from headedit.data.batches import Encoded
from headedit.data.losses import total_loss
from headedit.edits import HeadEdits
from headedit.edits.gate_set import GateIndex, all_gates, freeze_gates
from headedit.edits.site_input import whole_input
from headedit.hf.checkpointing import evaluating_with_gradients
from headedit.specs import HeadSite

_SAMPLE = 64
_SAMPLE_TOKENS = 512


def activation_rms(edits: HeadEdits, run: Callable[[], object]) -> list[float]:
    """Root mean square of each site's input, [sites], to the nearest power of two: sites so share optimiser groups.

    Args:
        edits: the handle.
        run: runs the model on some examples.
    """
    squares: list[list[Tensor]] = [[] for _ in edits.sites]
    with ExitStack() as stack:
        for site, means in zip(edits.sites, squares, strict=True):
            hook = site.module.register_forward_pre_hook(_appending_mean_square(means, site), prepend=True)
            stack.callback(hook.remove)
        run()
    rms = [torch.stack(means).mean().sqrt().item() if means else 1.0 for means in squares]
    return [2.0 ** round(math.log2(value)) if value > 0 else 1.0 for value in rms]


def few_tokens(rows: Sequence[Encoded]) -> Sequence[Encoded]:
    """The first examples, as many as have 512 tokens, and at most 64: each has a value per token and width."""
    tokens = accumulate(len(row["input_ids"]) for row in rows[:_SAMPLE])
    return rows[: min(_SAMPLE, 1 + sum(found < _SAMPLE_TOKENS for found in tokens))]


def gate_gradients(edits: HeadEdits, batches: Iterable[dict[str, Tensor]], rms: list[float]) -> dict[GateIndex, float]:
    """Norm of the gradient of the loss with respect to the vectors of every gate, as if that gate were open.

    The loss is the mean over the labelled tokens of all batches. The gradient is taken in eval mode, that of offsets in
    units of their site's activations. The edits must have zero vectors under every closed gate; afterwards all gates
    are open.

    Args:
        edits: the handle.
        batches: padded examples with labels.
        rms: root mean square of each site's input, [sites].
    """
    module, model = edits.module, edits.model
    freeze_gates(module, all_gates(module))
    module.zero_grad()
    tokens = 0
    with evaluating_with_gradients(model):
        for batch in batches:
            total, labelled = total_loss(model, batch)
            total.backward()  # type: ignore[no-untyped-call]
            tokens += labelled
    found: dict[GateIndex, float] = {}
    for i, edit in enumerate(module):
        for owner in edit.gated_vectors():
            squares = torch.zeros(edit.heads)
            for name in edit.vectors_of(owner):
                grad = edit.vectors[name].grad
                if grad is not None:
                    unit = (rms[i] if name == "offset" else 1.0) / tokens
                    squares += reduce((grad.float().cpu() * unit).square(), "head dim -> head", "sum")
            found |= {GateIndex(i, owner, head): value for head, value in enumerate(squares.sqrt().tolist())}
    module.zero_grad()
    return found


def _appending_mean_square(means: list[Tensor], site: HeadSite) -> Callable[[Any, tuple[Any, ...]], None]:
    """A forward pre-hook that appends the mean square of a site's whole input to a list."""

    def hook(module: Any, args: tuple[Any, ...]) -> None:
        means.append(whole_input(module, args[0], site.width, site.path).float().square().mean())

    return hook
