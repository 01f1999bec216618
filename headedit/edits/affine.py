"""The edit as an affine map of a site's input, z' = scale ⊙ z + offset, and how vectors line up with the heads.

With the edit of JoLA (Lai, Fraser, Titov, ICML 2025, arXiv 2502.01179), z' = (1 + g_m·m) ⊙ z + g_a·a, the factor is
1 + g_m·m and the offset g_a·a.
"""

import torch
from torch import Tensor

from headedit.errors import HeadEditError

Affine = tuple[Tensor | None, Tensor | None]
"""The factor on a site's input and the offset added to it, each [heads * head_dim]; None for 1 and for 0."""


def apply_affine(z: Tensor, scale: Tensor | None, offset: Tensor | None) -> Tensor:
    """The edited input z ⊙ scale + offset, in one operator.

    Computed in the widest dtype of the three and rounded once to that of z.

    Args:
        z: [..., width].
        scale: the factor; it broadcasts to the shape of z. None for 1.
        offset: the offset; it broadcasts to the shape of z. None for 0.

    Returns:
        In the shape and dtype of z.
    """
    if offset is None:
        return (z if scale is None else z * scale).to(z.dtype)
    return (z + offset if scale is None else torch.addcmul(offset, z, scale)).to(z.dtype)


def heads_shape(z: Tensor, heads: int, head_dim: int, path: str) -> tuple[int, ...]:
    """The last dimensions of a site's input that its heads fill: one of them, or two, (groups, width / groups).

    Raises:
        HeadEditError: the input has another width.
    """
    width = heads * head_dim
    if z.shape[-1] == width:
        return (width,)
    if z.dim() > 1 and z.shape[-2] * z.shape[-1] == width:
        return tuple(z.shape[-2:])
    raise HeadEditError(
        f"{path} was given {tuple(z.shape)}, but its spec says {heads} heads of width {head_dim} ({width} in the last "
        "dimension). Correct the spec."
    )


def broadcast_to_heads(vector: Tensor | None, z: Tensor, shape: tuple[int, ...]) -> Tensor | None:
    """A vector [heads * head_dim] on the device of z, in the shape of the last dimensions of z."""
    if vector is None:
        return None
    if vector.device != z.device:
        vector = vector.to(z.device)
    return vector if len(shape) == 1 else vector.view(shape)
