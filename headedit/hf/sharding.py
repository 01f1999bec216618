"""Weights that are split over processes."""

import sys
from collections.abc import Iterable
from typing import Any

from torch import nn


def is_sharded(parameter: object) -> bool:
    """Whether a tensor is a ``DTensor``, of which each process holds a part or a copy."""
    tensor = sys.modules.get("torch.distributed.tensor")  # not loaded, so nothing can be one
    return tensor is not None and isinstance(parameter, tensor.DTensor)


def is_tensor_parallel(model: nn.Module, projections: Iterable[nn.Module]) -> bool:
    """Whether processes share the heads of a model, so that each projection is given the heads of its own process.

    Args:
        model: the model.
        projections: modules whose inputs are heads.
    """
    if (getattr(model, "_tp_size", None) or 1) > 1:
        return True
    return any(_splits_inputs(module._parameters.get("weight")) for module in projections)


def _splits_inputs(weight: Any) -> bool:
    if not is_sharded(weight):
        return False
    inputs = weight.dim() - 1
    return any(place.is_shard(inputs) and weight.device_mesh.size(i) > 1 for i, place in enumerate(weight.placements))
