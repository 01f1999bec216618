"""The size of each site's input, and the gradient of the loss along each gate's vectors, before any head is chosen."""

import math
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import Any

import torch
from einops import reduce
from torch import Tensor

from headedit.data.equal_lengths import in_equal_lengths
from headedit.edits import HeadEdits
from headedit.edits.gate_set import GateIndex, all_gates, freeze_gates
from headedit.hf.modes import evaluating
from headedit.training.loop.token_loss import token_loss


def activation_rms(edits: HeadEdits, run: Callable[[], object]) -> list[float]:
    """Root mean square of each site's input, [sites], to the nearest power of two: sites so share optimiser groups.

    Args:
        edits: the handle.
        run: runs the model on some examples.
    """
    squares: list[list[Tensor]] = [[] for _ in edits.sites]
    with ExitStack() as stack:
        for site, means in zip(edits.sites, squares, strict=True):
            hook = site.module.register_forward_pre_hook(_appending_mean_square(means), prepend=True)
            stack.callback(hook.remove)
        run()
    rms = [torch.stack(means).mean().sqrt().item() if means else 1.0 for means in squares]
    return [2.0 ** round(math.log2(value)) if value > 0 else 1.0 for value in rms]


def gate_gradients(
    edits: HeadEdits, batches: Iterable[tuple[float, dict[str, Tensor]]], rms: list[float]
) -> dict[GateIndex, float]:
    """Norm of the gradient of the loss with respect to the vectors of every gate, as if that gate were open.

    The gradient is taken in eval mode, that of offsets in units of their site's activations. The edits must have zero
    vectors under every closed gate; afterwards all gates are open.

    Args:
        edits: the handle.
        batches: pairs of a batch's share of all examples and the batch.
        rms: root mean square of each site's input, [sites].
    """
    module, model = edits.module, edits.model
    freeze_gates(module, all_gates(module))
    module.zero_grad()
    with evaluating(model):
        device = model.get_input_embeddings().weight.device  # type: ignore[operator]
        for share, batch in batches:
            inputs = {key: value.to(device) for key, value in batch.items()}
            labels = inputs.pop("labels")
            loss: Any = token_loss(in_equal_lengths(model, inputs, model)(**inputs, use_cache=False), labels)
            (loss * share).backward()
    found: dict[GateIndex, float] = {}
    for i, edit in enumerate(module):
        for owner in edit.gated_vectors():
            squares = torch.zeros(edit.heads)
            for name in edit.vectors_of(owner):
                grad = edit.vectors[name].grad
                if grad is not None:
                    unit = rms[i] if name == "offset" else 1.0
                    squares += reduce((grad.float().cpu() * unit).square(), "head dim -> head", "sum")
            found |= {GateIndex(i, owner, head): value for head, value in enumerate(squares.sqrt().tolist())}
    module.zero_grad()
    return found


def _appending_mean_square(means: list[Tensor]) -> Callable[[Any, tuple[Any, ...]], None]:
    """A forward pre-hook that appends the mean square of a module's input to a list."""

    def hook(module: Any, args: tuple[Any, ...]) -> None:
        means.append(args[0].detach().float().square().mean())

    return hook
