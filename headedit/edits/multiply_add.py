"""The line that an edit comes down to, z ⊙ scale + offset, in one pass over z, and no needless one for its gradient."""

import functools
from typing import Any

import torch
from torch import Tensor


def multiply_add(z: Tensor, scale: Tensor | None, offset: Tensor | None) -> Tensor:
    """The edited input, computed in the widest dtype of the three and rounded once to that of z.

    Args:
        z: [..., width].
        scale: the factor; it broadcasts to the shape of z. None for 1.
        offset: what is added; it broadcasts to the shape of z. None for 0.

    Returns:
        In the shape and dtype of z.
    """
    if torch.is_grad_enabled() and not torch.compiler.is_compiling() and (_needs(scale) or _needs(offset)):
        edited: Tensor = _MultiplyAdd.apply(z, scale, offset)  # type: ignore[no-untyped-call]
        return edited
    return _multiply_add(z, scale, offset)


def _needs(vector: Tensor | None) -> bool:
    return vector is not None and vector.requires_grad


def _multiply_add(z: Tensor, scale: Tensor | None, offset: Tensor | None) -> Tensor:
    if offset is None:
        return (z if scale is None else z * scale).to(z.dtype)
    return (z + offset if scale is None else torch.addcmul(offset, z, scale)).to(z.dtype)


class _MultiplyAdd(torch.autograd.Function):
    """The line with autograd's own gradient, to the bit, without the pass z ⊙ 1 that addcmul makes for it."""

    generate_vmap_rule = True

    @staticmethod
    def forward(z: Tensor, scale: Tensor | None, offset: Tensor | None) -> Tensor:
        return _multiply_add(z, scale, offset)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor | None, ...], output: Tensor) -> None:
        z, scale, offset = inputs
        of_z, of_scale, _ = ctx.needs_input_grad
        ctx.save_for_backward(z if of_scale else None, scale if of_z else None)
        ctx.shapes = [None if vector is None else vector.shape for vector in (scale, offset)]
        ctx.widest = functools.reduce(torch.promote_types, {t.dtype for t in inputs if t is not None})

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,), (z, scale) = gradients, ctx.saved_tensors
        of_z, of_scale, of_offset = ctx.needs_input_grad
        wide = gradient.to(ctx.widest)
        return (
            _multiply_add(gradient, scale, None) if of_z else None,
            (wide * z).sum_to_size(ctx.shapes[0]) if of_scale else None,
            wide.sum_to_size(ctx.shapes[1]) if of_offset else None,
        )
