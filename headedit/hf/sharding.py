"""Weights and inputs that are split over processes."""

import sys
from collections.abc import Iterable
from typing import Any, NamedTuple

from torch import Tensor, distributed, nn

from headedit.errors import HeadEditError


class Part(NamedTuple):
    """The part of a dimension that this process has, and the group of the processes that have the others."""

    start: int
    stop: int
    group: Any


def is_sharded(parameter: object) -> bool:
    """Whether a tensor is a ``DTensor``, of which each process holds a part or a copy."""
    tensor = sys.modules.get("torch.distributed.tensor")  # not loaded, so nothing can be one
    return tensor is not None and isinstance(parameter, tensor.DTensor)


def is_tensor_parallel(model: nn.Module, projections: Iterable[nn.Module]) -> bool:
    """Whether processes share the layers of a model, so that all of them compute the same tokens together.

    Args:
        model: the model.
        projections: modules whose inputs are heads.
    """
    return tensor_parallel_group(model, projections) is not None


def tensor_parallel_group(model: nn.Module, projections: Iterable[nn.Module]) -> Any:
    """The group of the processes that share the layers of a model; None where each process has whole layers.

    Args:
        model: the model.
        projections: modules whose inputs are heads.
    """
    if not (distributed.is_available() and distributed.is_initialized()):
        return None
    if (getattr(model, "_tp_size", None) or 1) > 1:
        mesh: Any = model._device_mesh
        return (mesh["tp"] if mesh.ndim > 1 else mesh).get_group()
    parts = (part_of_input(module, 1) for module in projections)
    return next((part.group for part in parts if part is not None), None)


def refuse_tensor_parallel(model: nn.Module, projections: Iterable[nn.Module], what: str) -> None:
    """Raises a HeadEditError where processes share the layers of a model.

    Args:
        model: the model.
        projections: modules whose inputs are heads.
        what: what needs all heads in one process, as the beginning of a sentence.
    """
    if is_tensor_parallel(model, projections):
        raise HeadEditError(
            f"{what} needs all heads in one process, and this {type(model).__name__} is sharded over processes by "
            "tensor parallelism: each has some of them. Load the model in one process, without tp_plan and over "
            "several devices by device_map if need be, and the saved edits on it."
        )


def data_parallel_size(processes: int, model: nn.Module, projections: Iterable[nn.Module]) -> int:
    """How many of some processes have examples of their own; those that share the layers of a model share them."""
    group = tensor_parallel_group(model, projections)
    return processes if group is None else processes // distributed.get_world_size(group)


def part_of_input(module: nn.Module, width: int) -> Part | None:
    """The part of a projection's input that its weight has in this process; None where it has the whole.

    Args:
        module: the projection; its inputs are the last dimension of its weight.
        width: the size of the last dimension of its whole input.
    """
    weight: Any = module._parameters.get("weight")
    return part_of(weight, weight.dim() - 1, width) if is_sharded(weight) else None


def part_of(tensor: Any, dim: int, size: int) -> Part | None:
    """The part of a dimension of a ``DTensor`` that this process has; None where it has the whole.

    Args:
        tensor: the ``DTensor``.
        dim: the dimension.
        size: its size, which is split as ``torch.chunk`` does.
    """
    mesh = tensor.device_mesh
    for i, place in enumerate(tensor.placements):
        if place.is_shard(dim) and mesh.size(i) > 1:
            step = -(-size // mesh.size(i))
            start = min(step * mesh.get_local_rank(i), size)
            return Part(start, min(start + step, size), mesh.get_group(i))
    return None


def from_first(values: Tensor, group: Any) -> Tensor:
    """The values that the first process of a group has, on all of them; written into the tensor."""
    distributed.broadcast(values, distributed.get_global_rank(group, 0), group=group)
    return values
