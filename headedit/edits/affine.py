"""The edit as an affine map of a site's input, z' = scale ⊙ z + offset, and how vectors line up with the heads.

With the edit of JoLA (Lai, Fraser, Titov, ICML 2025, arXiv 2502.01179), z' = (1 + g_m·m) ⊙ z + g_a·a, the factor is
1 + g_m·m and the offset g_a·a.
"""

from typing import Any, Protocol

import torch
from torch import Tensor, distributed
from torch.autograd import forward_ad

from headedit.errors import HeadEditError

Affine = tuple[Tensor | None, Tensor | None]
"""The factor on a site's input and the offset added to it, each [heads * head_dim]; None for 1 and for 0."""

_transforms_active: Any = getattr(torch._C, "_are_functorch_transforms_active", lambda: True)


def apply_affine(z: Tensor, scale: Tensor | None, offset: Tensor | None) -> Tensor:
    """The edited input z ⊙ scale + offset, in one operator, and one to round it where gradients are recorded.

    Computed in the widest dtype of the three and rounded once to that of z.

    Args:
        z: [..., width].
        scale: the factor; it broadcasts to the shape of z. None for 1.
        offset: the offset; it broadcasts to the shape of z. None for 0.

    Returns:
        In the shape and dtype of z.
    """
    if offset is None:
        if scale is None:
            return z
        found = torch.mul(z, scale, out=torch.empty_like(z)) if _rounds(z, scale) else z * scale
    elif scale is None:
        found = torch.add(z, offset, out=torch.empty_like(z)) if _rounds(z, offset) else z + offset
    elif _rounds(z, scale):
        found = torch.addcmul(offset, z, scale, out=torch.empty_like(z))
    else:
        found = torch.addcmul(offset, z, scale)
    return found.to(z.dtype)


def _rounds(z: Tensor, vector: Tensor) -> bool:
    """Whether the operator can round its result to the dtype of z as it writes it, which saves a kernel.

    Not where something else than a plain tensor comes out: a graph of autograd, of a compiler or a trace, or a
    transform of ``torch.func``.
    """
    return (
        z.dtype != vector.dtype
        and not torch.is_grad_enabled()
        and type(z) is Tensor
        and not torch.compiler.is_compiling()
        and not _transforms_active()
        and forward_ad._current_level < 0  # no forward-mode derivatives are recorded
        and not torch._C._is_tracing()
        and z.device.type in ("cpu", "cuda")
    )


class Heads(Protocol):
    """How the heads of a site fill its input; see ``HeadSite``."""

    @property
    def heads(self) -> int:
        """Number of heads."""
        ...

    @property
    def head_dim(self) -> int:
        """Width of a head."""
        ...

    @property
    def groups(self) -> int:
        """Into how many groups the input is split, as the spec says."""
        ...

    @property
    def path(self) -> str:
        """The name of the site's module, for messages."""
        ...


def heads_shape(z: Tensor, of: Heads) -> tuple[int, ...]:
    """The last dimensions of a site's input that its heads fill: one of them, or two, (groups, width / groups).

    Two are accepted only where the spec says that the input is split into groups.

    Raises:
        HeadEditError: the input has another width.
    """
    width = of.heads * of.head_dim
    if z.shape[-1] == width:
        return (width,)
    if of.groups > 1 and z.shape[-2:] == (of.groups, width // of.groups):
        return (of.groups, width // of.groups)
    way_out = "Correct the spec."
    if z.shape[-1] < width and distributed.is_available() and distributed.is_initialized():
        way_out = (
            "If the model is sharded over processes, it is in a way that does not say which heads this one has: load "
            "it whole, or by tp_plan without quantization. Otherwise correct the spec."
        )
    raise HeadEditError(
        f"{of.path} was given {tuple(z.shape)}, but its spec says {of.heads} heads of width {of.head_dim} ({width} in "
        f"the last dimension{f', or {of.groups} groups' if of.groups > 1 else ''}). {way_out}"
    )


def broadcast_to_heads(vector: Tensor | None, z: Tensor, shape: tuple[int, ...]) -> Tensor | None:
    """A vector [heads * head_dim] on the device of z, in the shape of the last dimensions of z."""
    if vector is None:
        return None
    if vector.device != z.device:
        vector = vector.to(z.device)
    return vector if len(shape) == 1 else vector.view(shape)
