"""The line that an edit comes down to, z ⊙ scale + offset, in one operator."""

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
    if offset is None:
        return (z if scale is None else z * scale).to(z.dtype)
    return (z + offset if scale is None else torch.addcmul(offset, z, scale)).to(z.dtype)
