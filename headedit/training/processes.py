"""Several processes of one training: how many were started, on what they work together, and how they agree.

``torchrun`` and ``accelerate launch`` start processes and say so in the environment. They work together once a process
group of ``torch.distributed`` is in use, which accelerate starts by itself on accelerators, and on CPUs only when told.
"""

import os
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from headedit.errors import HeadEditError
from headedit.hf.sharding import is_tensor_parallel

DEVICE_ARGUMENTS = ("use_cpu", "ddp_backend", "ddp_timeout")
"""The fields of ``TrainingArguments`` that say on what processes run and how they talk, which no result depends on."""

_RANKS = ("RANK", "LOCAL_RANK")
_MPI_SIZES = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")


def started_processes() -> int:
    """How many processes there are: of the process group, or as torchrun, accelerate or mpirun says; 1 for one."""
    if dist.is_available() and dist.is_initialized():
        return int(dist.get_world_size())
    names = (("WORLD_SIZE",) if any(name in os.environ for name in _RANKS) else ()) + _MPI_SIZES
    counts = [int(os.environ[name]) for name in names if os.environ.get(name, "").isdigit()]
    return max(counts, default=1)


def device_arguments(arguments: Mapping[str, Any], device: str | None = None) -> dict[str, Any]:
    """Training arguments with those that processes on CPUs need, unless they are given.

    Args:
        arguments: fields of ``TrainingArguments``.
        device: the device that the user chose for the model; None for none.
    """
    if uses_deepspeed(arguments):  # which starts its processes by itself
        return dict(arguments)
    several = started_processes() > 1
    on_cpu = device is not None and device.partition(":")[0] == "cpu"
    found = dict(arguments)
    if on_cpu or (several and not torch.accelerator.is_available()):
        found.setdefault("use_cpu", True)
    if several and found.get("use_cpu") and found.get("ddp_backend") is None:
        found["ddp_backend"] = "gloo"
    return found


def join_processes(arguments: Mapping[str, Any], model: nn.Module) -> int:
    """Starts the process group where there are several processes, and returns their number.

    Args:
        arguments: fields of ``TrainingArguments``, of which those about devices count.
        model: the model that is trained.

    Raises:
        HeadEditError: several processes were started and would each train by itself, or they do not find each other.
    """
    from transformers import TrainingArguments

    given = {name: arguments[name] for name in DEVICE_ARGUMENTS if name in arguments}
    try:
        world_size = int(TrainingArguments(report_to=[], **given).world_size)
    except ValueError as error:
        if started_processes() == 1:
            raise
        raise HeadEditError(f"The processes cannot be joined: {error}") from None
    check_together(world_size, model)
    return world_size


def uses_deepspeed(arguments: Mapping[str, Any]) -> bool:
    """Whether DeepSpeed runs the model, as the training arguments or ``accelerate launch`` say."""
    return bool(arguments.get("deepspeed")) or os.environ.get("ACCELERATE_USE_DEEPSPEED", "").lower() in ("true", "1")


def refuse_engines(arguments: Mapping[str, Any]) -> None:
    """Raises a HeadEditError where an engine would run the model in which recipes cannot work.

    Args:
        arguments: fields of ``TrainingArguments``.
    """
    if uses_deepspeed(arguments):
        raise HeadEditError(
            "deepspeed: recipes read the gradient of every gate and change learning rates, and DeepSpeed keeps both to "
            "itself. Use data parallelism or fsdp: true in its place; headedit.HeadEditTrainer trains with ZeRO-2."
        )
    if _fsdp_version(arguments) == "1":
        raise HeadEditError(
            "fsdp: FSDP1 has the weights only while its wrapper runs, and recipes call the model itself, as to "
            "validate. Use FSDP2: fsdp_version: 2 in accelerate's config file, or fsdp_config: {version: 2} among the "
            "training arguments."
        )


def _fsdp_version(arguments: Mapping[str, Any]) -> str | None:
    """The version of FSDP that will shard the model, as far as it is known; None where none will."""
    if arguments.get("use_cpu"):
        return None  # accelerate shards on accelerators alone
    if arguments.get("fsdp"):
        config = arguments.get("fsdp_config")
        given = config if isinstance(config, Mapping) else {}
        return str(given.get("version", given.get("fsdp_version", "2")))
    used = os.environ.get("ACCELERATE_USE_FSDP", "").lower() in ("true", "1")
    return os.environ.get("FSDP_VERSION", "1") if used else None


def check_together(world_size: int, model: nn.Module | None = None) -> None:
    """Raises a HeadEditError where several processes were started and each would train the whole run.

    Args:
        world_size: the number of processes that work together.
        model: the model; those that share its heads, by tensor parallelism, need not be counted in ``world_size``.
    """
    started = started_processes()
    if world_size > 1 or started == 1 or (model is not None and is_tensor_parallel(model, [])):
        return
    raise HeadEditError(
        f"{started} processes were started, and none knows of the others, so that each would train the whole run into "
        "the same folder. On CPUs two settings are missing: use_cpu=True and ddp_backend='gloo' among the training "
        "arguments; --device cpu, or model: device: cpu, sets both. On GPUs, start one process per GPU that torch can "
        "use, with torchrun --nproc-per-node or accelerate launch."
    )


def is_first() -> bool:
    """Whether this process is the first of those that work together; where there is no process group, it is."""
    return not (dist.is_available() and dist.is_initialized()) or dist.get_rank() == 0


def agree(flag: bool) -> bool:
    """Whether a flag is set in any process; every process must ask at the same time."""
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return flag
    device = "cpu" if agrees_cheaply() else torch.accelerator.current_accelerator()
    found = torch.tensor([flag], dtype=torch.int32, device=device)
    dist.all_reduce(found, op=dist.ReduceOp.MAX)
    return bool(found.item())


def agrees_cheaply() -> bool:
    """Whether ``agree`` needs no accelerator, for which the host would have to wait."""
    if not (dist.is_available() and dist.is_initialized()):
        return True
    return "gloo" in str(dist.get_backend_config() if hasattr(dist, "get_backend_config") else dist.get_backend())
