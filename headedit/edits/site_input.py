"""The input of a site as its module is given it: the whole of it, or the heads of one process alone.

Under tensor parallelism each process has some of the heads of a model. It holds the whole edits, applies those of its
own heads, and in the backward pass the processes add up what each has found, so that all have the whole gradient.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, distributed, nn
from torch.autograd.function import once_differentiable

from headedit.edits.affine import Affine
from headedit.errors import HeadEditError
from headedit.hf.sharding import Part, is_sharded, part_of, part_of_input


class SiteInput(NamedTuple):
    """What a site's module was given.

    Fields:
        values: the input, [..., width], or of the heads that this process has.
        part: which of the whole width that is; None for all.
        like: the ``DTensor`` whose local part the values are; None where the module was given a plain tensor.
    """

    values: Tensor
    part: Part | None = None
    like: Any = None

    def put_back(self, edited: Tensor) -> Tensor:
        """Edited values in the form that the module was given."""
        if self.like is None:
            return edited
        kind = type(self.like)
        given = {"shape": self.like.shape, "stride": self.like.stride()}
        found: Tensor = kind.from_local(edited, self.like.device_mesh, self.like.placements, run_check=False, **given)
        return found


def site_input(module: nn.Module, z: Tensor, width: int, path: str) -> SiteInput:
    """What a site's module was given.

    Args:
        module: the module at the site.
        z: its first argument.
        width: the size of the last dimension of the whole input.
        path: the module's name, for messages.

    Raises:
        HeadEditError: the input is split over processes in another way than by its last dimension, or this process was
            given another part of it than its weight has.
    """
    if type(z) is not Tensor and is_sharded(z):
        return _local(z, width, path)
    if z.shape[-1] == width:
        return SiteInput(z)
    part = part_of_input(module, width)
    if part is None:
        return SiteInput(z)
    _check_width(z, part, width, path)
    return SiteInput(z, part)


@torch.no_grad()
def whole_input(module: nn.Module, z: Tensor, width: int, path: str) -> Tensor:
    """The whole input of a site's module, [..., width], in every process; see ``site_input``."""
    given = site_input(module, z.detach(), width, path)
    if given.part is None:
        return given.values
    whole = given.values.new_zeros(*z.shape[:-1], width)
    whole[..., given.part.start : given.part.stop] = given.values
    distributed.all_reduce(whole, group=given.part.group)
    return whole


def _local(z: Any, width: int, path: str) -> SiteInput:
    last, mesh = z.dim() - 1, z.device_mesh
    split = [place for i, place in enumerate(z.placements) if mesh.size(i) > 1 and not place.is_replicate()]
    if any(not place.is_shard(last) for place in split) or len(split) > 1 or z.shape[-1] != width:
        raise HeadEditError(
            f"{path} was given {tuple(z.shape)}, split over processes by {z.placements}. Edits act where the last "
            f"dimension, {width} wide, is whole or split by heads, as a row-wise projection takes it."
        )
    part, local = part_of(z, last, width), z.to_local()
    if part is not None:
        _check_width(local, part, width, path)
    return SiteInput(local, part, z)


def _check_width(z: Tensor, part: Part, width: int, path: str) -> None:
    if z.shape[-1] != part.stop - part.start:
        raise HeadEditError(
            f"{path} was given {tuple(z.shape)}, but its weight is split over processes such that this one has the "
            f"inputs {part.start} to {part.stop} of {width}: which heads it was given cannot be told. Load the model "
            "whole, or shard it by FSDP2."
        )


def take(affine: Affine, part: Part) -> Affine:
    """The affine map of the heads that this process has; its gradient is that of the heads of all processes.

    Args:
        affine: the map of all heads.
        part: the part of the width that this process has.
    """
    names = [i for i, vector in enumerate(affine) if vector is not None]
    whole = [vector for vector in affine if vector is not None]
    if torch.is_grad_enabled() and any(vector.requires_grad for vector in whole):
        taken = _Take.apply(part, *whole)  # type: ignore[no-untyped-call]
    else:
        taken = tuple(vector[..., part.start : part.stop] for vector in whole)
    found: list[Tensor | None] = [None, None]
    for i, vector in zip(names, taken, strict=True):
        found[i] = vector
    return found[0], found[1]


class _Take(torch.autograd.Function):
    """Takes a part of the last dimension of tensors; in the backward pass all parts are gathered, in one operator."""

    @staticmethod
    def forward(ctx: Any, part: Part, *whole: Tensor) -> tuple[Tensor, ...]:
        ctx.part, ctx.shapes = part, [vector.shape for vector in whole]
        return tuple(vector[..., part.start : part.stop].clone() for vector in whole)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        first, part = gradients[0], ctx.part
        gathered = first.new_zeros(len(gradients), *ctx.shapes[0])
        for row, gradient in zip(gathered, gradients, strict=True):
            row[..., part.start : part.stop] = gradient
        distributed.all_reduce(gathered, group=part.group)
        return None, *gathered.unbind()
