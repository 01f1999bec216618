"""Whether a process has the whole of an edit's parameters, and the way out where an engine has taken them apart."""

import torch.distributed as dist
from torch import Tensor

from headedit.errors import HeadEditError
from headedit.hf.sharding import is_sharded


def several_processes() -> bool:
    """Whether this process is one of several of a process group."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def check_whole(value: Tensor, shape: tuple[int, ...], where: str, *, gathers: bool = False) -> None:
    """Raises a HeadEditError where a parameter is not whole in this process.

    Args:
        value: the parameter.
        shape: the shape that it was made with.
        where: its site and name, for the message.
        gathers: whether what reads it can put the parts of a ``DTensor`` together.
    """
    if value.shape == shape and (gathers or not is_sharded(value)):
        return
    raise HeadEditError(
        f"{where} is not whole in this process: it has shape {tuple(value.shape)}, expected {shape}. {_way_out(value)}"
    )


def _way_out(value: Tensor) -> str:
    if hasattr(value, "ds_id"):
        return (
            "DeepSpeed's ZeRO-3 shares out parameters of more values than stage3_param_persistence_threshold; its "
            "default leaves edits whole. Or read and save them, in every process, within "
            "deepspeed.zero.GatheredParameters(list(model.headedit.parameters()))."
        )
    if is_sharded(value):
        return (
            "It is sharded over processes, as fully_shard(model.headedit) does. Shard the model alone, "
            "fully_shard(model), which leaves the edits whole."
        )
    if several_processes():
        return (
            "An engine such as FSDP1 (FullyShardedDataParallel) has flattened or sharded it. Keep the edits whole with "
            "ignored_states=list(model.headedit.parameters()), or use FSDP2, fully_shard(model)."
        )
    return "Assign tensors of that shape to edits, or attach edits of another shape."
