"""How much memory is free: of GPUs, of the machine, or of the container that a process runs in."""

import os
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import torch

_CONTAINERS = (  # limit, use, statistics and the names there of pages that can be given back: of cgroups 2 and 1
    ("memory.max", "memory.current", "memory.stat", ("inactive_file", "active_file")),
    (
        "memory/memory.limit_in_bytes",
        "memory/memory.usage_in_bytes",
        "memory/memory.stat",
        ("total_inactive_file", "total_active_file"),
    ),
)


def free_memory(device: Literal["cuda", "cpu"], name: str | None = None, *, all_devices: bool = False) -> int:
    """Bytes that this process could still take of a device.

    What this process holds of a GPU and does not use counts as free. Processes that were started together on a CPU get
    equal parts of it.

    Args:
        device: its kind.
        name: of a GPU, such as ``cuda:1``; None for this process's.
        all_devices: of the GPU that has least, as a model that is spread over all needs of each.
    """
    if device == "cpu":
        together = max(1, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
        machine: Any = import_module("psutil")  # accelerate depends on it
        free = int(machine.virtual_memory().available)
        container = container_memory()
        return (free if container is None else min(free, container[1])) // together
    index = None if name is None else torch.device(name).index
    if index is None:
        index = int(os.environ.get("LOCAL_RANK", torch.cuda.current_device()))
    gpus = range(torch.cuda.device_count()) if all_devices else [index]
    return min(
        int(torch.cuda.mem_get_info(i)[0]) + torch.cuda.memory_reserved(i) - torch.cuda.memory_allocated(i)
        for i in gpus
    )


def container_memory(root: Path = Path("/sys/fs/cgroup")) -> tuple[int, int] | None:
    """The limit of the container and what is left of it, in bytes; None where there is no limit.

    Args:
        root: where the system shows its control groups.
    """
    for limit, use, statistics, names in _CONTAINERS:
        try:
            most, used = int((root / limit).read_text()), int((root / use).read_text())
            lines = (line.split() for line in (root / statistics).read_text().splitlines())
            cached = sum(int(line[1]) for line in lines if line[0] in names)
        except (OSError, ValueError, IndexError):  # no such file, or the word max
            continue
        if most < 2**60:  # cgroups 1 write a large number for no limit
            return most, max(0, most - used + cached)
    return None
