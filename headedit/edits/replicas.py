"""Edits on a model whose weights are shared out over processes: each process holds them whole.

Edits are small: sharding them would save nothing, and every reader of a gate would have to gather it first, in all
processes at once. FSDP leaves them alone, and their gradients are averaged over its processes here, as it averages
those of the parameters that it shards.
"""

import sys
from collections.abc import Iterable
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn

from headedit.edits.site_edit import SiteEdit
from headedit.errors import HeadEditError
from headedit.hf.sharding import is_sharded


class KeptWhole:
    """A mixin for modules that FSDP does not shard, of either version, whether it is told to ignore them or not.

    To FSDP they look like a module that another engine replicates.
    """

    def __getattr__(self, name: str) -> Any:
        contract: Any = sys.modules.get("torch.distributed._composable.contract")
        if contract is not None and name == getattr(contract, "REGISTRY_KEY", None):
            return {"replicate": None}
        return super().__getattr__(name)  # type: ignore[misc]


def begin_pass(model: nn.Module, edits: Iterable[SiteEdit], *, learning: bool) -> None:
    """Checks that edits are whole in this process and, where FSDP shards the model, has their gradients averaged.

    Args:
        model: the model, whose pass begins.
        edits: those that act.
        learning: whether gradients are recorded.

    Raises:
        HeadEditError: an engine has taken the edits apart, or the model's own weights are not there.
    """
    edits = list(edits)
    for edit in edits:
        edit.check_whole()
    if "torch.distributed.fsdp" in sys.modules:
        _check_gathered(model)
    if not learning or not (groups := _groups_of_fsdp(model, edits)):
        return
    for edit in edits:
        for parameter in edit.parameters():
            hooks = getattr(parameter, "_post_accumulate_grad_hooks", None) or {}
            if parameter.requires_grad and not any(isinstance(hook, Averaging) for hook in hooks.values()):
                parameter.register_post_accumulate_grad_hook(Averaging(groups))  # type: ignore[no-untyped-call]


def _check_gathered(model: nn.Module) -> None:
    """Raises a HeadEditError where FSDP1 has not gathered the weights, as it does while its wrapper runs."""
    get: Any = getattr(model, "get_input_embeddings", None)
    embedding = get() if callable(get) else None
    weight = getattr(embedding, "weight", None)
    if not isinstance(embedding, nn.Embedding) or not isinstance(weight, Tensor) or hasattr(weight, "ds_id"):
        return
    freed = type(weight) is Tensor and not weight.is_meta and weight.untyped_storage().size() == 0
    if weight.dim() != 2 or freed:
        raise HeadEditError(
            f"The weights of this {type(model).__name__} are flattened by FSDP1, and it was called itself. Call the "
            "FullyShardedDataParallel around it, which gathers them; or use FSDP2, fully_shard(model), with which the "
            "model itself is called."
        )


class Averaging:
    """A hook of a parameter that averages its gradient over groups of processes, one group after the other.

    Where gradients are accumulated it does so after each batch: what was averaged before is the same everywhere.

    Args:
        groups: groups of processes; None among them for all processes.
    """

    def __init__(self, groups: list[Any]) -> None:
        self._groups = groups

    def __call__(self, parameter: Tensor) -> None:
        """Averages the gradient."""
        if parameter.grad is not None:
            for group in self._groups:
                dist.all_reduce(parameter.grad, group=group)
                parameter.grad /= dist.get_world_size(group)


def _groups_of_fsdp(model: nn.Module, edits: list[SiteEdit]) -> list[Any]:
    """The groups of processes over which FSDP shards a model or replicates the shards; empty where it does not.

    None stands for all processes.
    """
    fsdp: Any = sys.modules.get("torch.distributed.fsdp")
    if fsdp is None:
        return []
    sharding = getattr(fsdp, "FSDPModule", ())
    if any(isinstance(module, sharding) for module in model.modules()):
        weight = next((parameter for parameter in model.parameters() if is_sharded(parameter)), None)
        mesh: Any = getattr(weight, "device_mesh", None)
        return [None] if mesh is None or mesh.size() == dist.get_world_size() else list(mesh.get_all_groups())
    return [None] if any(_is_flattened(model.get_submodule(edit.path)) for edit in edits[:1]) else []


def _is_flattened(module: nn.Module) -> bool:
    """Whether FSDP1 has made a module's weight part of a flat parameter: it is a mere view, or is marked."""
    weight = module._parameters.get("weight")
    return isinstance(module.__dict__.get("weight"), Tensor) or hasattr(weight, "_fsdp_flattened")
