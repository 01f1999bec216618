"""How the vectors of a site stand against its input, whose last dimensions the heads fill."""

from torch import Tensor

from headedit.errors import HeadEditError


def heads_shape(z: Tensor, heads: int, head_dim: int, path: str) -> tuple[int, ...]:
    """The last dimensions of a site's input that its heads fill: one of them, or two, (groups, width / groups).

    Raises:
        HeadEditError: it has another width.
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


def placed(vector: Tensor | None, z: Tensor, shape: tuple[int, ...]) -> Tensor | None:
    """A vector [heads * head_dim] on the device of z, in the shape of its last dimensions."""
    if vector is None:
        return None
    if vector.device != z.device:
        vector = vector.to(z.device)
    return vector if len(shape) == 1 else vector.view(shape)
