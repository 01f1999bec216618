"""How much memory there is: of a GPU, of the machine, or as a person writes it."""

import re
from importlib import import_module
from typing import Any, Literal

import torch

from headedit.errors import HeadEditError
from headedit.training.memory_plan.free import container_memory

GIB = 2**30
PROCESS = {"cuda": round(0.75 * GIB), "cpu": round(0.5 * GIB)}
"""Bytes of a process without any tensor: the CUDA context and the workspaces of libraries, or the libraries."""

_UNITS: dict[str, int] = {"": 1, "B": 1} | {f"{p}B": 1000**i for i, p in enumerate("KMGT", 1)}
_UNITS |= {f"{p}IB": 1024**i for i, p in enumerate("KMGT", 1)}


def read_memory(text: str) -> int:
    """The bytes of a number with a unit, such as ``24GiB``, ``80 GB`` or ``512MiB``.

    Raises:
        HeadEditError: it is not a number with a unit of memory.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text)
    if match is None or match[2].upper() not in _UNITS:
        raise HeadEditError(f"--memory: found '{text}', expected a number with a unit, such as 24GiB or 80GB.")
    return round(float(match[1]) * _UNITS[match[2].upper()])


def memory_of(device: Literal["cuda", "cpu"]) -> int:
    """Bytes of the smallest GPU, or of the machine or the container.

    Raises:
        HeadEditError: there is no GPU.
    """
    if device == "cuda":
        if not torch.cuda.is_available():
            raise HeadEditError("There is no GPU to read the memory of. Say how much there will be: --memory 24GiB.")
        sizes = [int(torch.cuda.get_device_properties(i).total_memory) for i in range(torch.cuda.device_count())]
        return min(sizes)
    machine: Any = import_module("psutil")  # accelerate depends on it
    total, container = int(machine.virtual_memory().total), container_memory()
    return total if container is None else min(total, container[0])


def show(number: float) -> str:
    """Bytes as a person reads them: ``15.0 GiB``."""
    for unit in ("B", "KiB", "MiB"):
        if abs(number) < 1024:
            return f"{number:.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1024
    return f"{number:.1f} GiB"
