"""What each site is given, and how steeply the loss falls along each gate's vectors: both before anything is chosen."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from headedit.edits import HeadEdits
from headedit.edits.gate_set import GateIndex, all_gates, freeze_gates
from headedit.hf.modes import evaluating


def units_of(edits: HeadEdits, run: Callable[[], object]) -> list[float]:
    """Root mean square of what each site is given, to the nearest power of two: so sites share optimiser groups.

    Args:
        edits: the handle.
        run: runs the model on some examples.
    """
    squares: list[list[Tensor]] = [[] for _ in edits.sites]
    hooks = [
        site.module.register_forward_pre_hook(_recording(kept), prepend=True)
        for site, kept in zip(edits.sites, squares, strict=True)
    ]
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    means = [torch.stack(kept).mean().sqrt().item() if kept else 1.0 for kept in squares]
    return [2.0 ** round(math.log2(mean)) if mean > 0 else 1.0 for mean in means]


def slopes_of(
    edits: HeadEdits, batches: Iterable[tuple[float, dict[str, Tensor]]], units: list[float]
) -> dict[GateIndex, float]:
    """How steeply the loss on some examples falls along the vectors of every gate, if it were open.

    The norm of the gradient in eval mode, offsets in units of their site's activations. The edits must have zero
    vectors under every gate that is closed; afterwards all gates are open.

    Args:
        edits: the handle.
        batches: the examples, each batch with its share of them.
        units: of the activations, one a site.
    """
    module, model = edits.module, edits.model
    freeze_gates(module, all_gates(module))
    module.zero_grad()
    with evaluating(model):
        device = model.get_input_embeddings().weight.device  # type: ignore[operator]
        for share, batch in batches:
            loss = model(**{k: v.to(device) for k, v in batch.items()}, use_cache=False).loss
            (loss * share).backward()
    found: dict[GateIndex, float] = {}
    for i, edit in enumerate(module):
        for owner in edit.gated_vectors():
            squares = torch.zeros(edit.heads)
            for name in edit.vectors_of(owner):
                grad = edit.vectors[name].grad
                if grad is not None:
                    squares += (grad.float().cpu() * (units[i] if name == "offset" else 1.0)).square().sum(-1)
            found |= {GateIndex(i, owner, head): value for head, value in enumerate(squares.sqrt().tolist())}
    module.zero_grad()
    return found


def _recording(kept: list[Tensor]) -> Any:
    def hook(module: Any, args: tuple[Any, ...]) -> None:
        kept.append(args[0].detach().float().square().mean())

    return hook
