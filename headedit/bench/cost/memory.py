"""Memory of a workload: peak of its tensors, peak of the process, and keeping freed memory for the next pass."""

import ctypes
import gc
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of mallopt(3)
_LARGEST = 2**30
_DYNAMIC_LARGEST = 32 * 2**20  # up to which glibc adjusts the threshold of mmap; that of trimming is twice it

_STATUS, _REFERENCES = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def peak_of_tensors(run: Callable[[], object], device: torch.device) -> int:
    """Bytes of tensors at the peak beyond those before the run; exact, whatever else the process does.

    Garbage is collected first, since freeing an earlier model during the run would count against the run's own tensors.
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as profiler:
        run()
    results = profiler.profiler.kineto_results  # the events of allocations are nowhere else
    held = peak = 0
    for event in sorted((e for e in results.events() if e.name() == "[memory]"), key=lambda e: e.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def peak_of_process(run: Callable[[], object]) -> int | None:
    """Bytes of the resident set at the peak, weights and libraries included; None where it cannot be measured.

    It can be measured only on Linux. It includes memory that the allocator keeps for later, so it depends on what ran
    before.
    """
    if not sys.platform.startswith("linux"):
        return None
    gc.collect()
    trim = _glibc("malloc_trim")
    if trim is not None:
        trim(0)
    try:
        _REFERENCES.write_text("5")  # proc(5): resets the peak of the resident set
    except OSError:
        return None
    run()
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def keeps_memory(device: torch.device) -> bool:
    """Whether freed memory of a device can be kept: where glibc allocates it, or PyTorch itself."""
    return device.type != "cpu" or _glibc("mallopt") is not None


@contextmanager
def memory_kept(device: torch.device) -> Iterator[None]:
    """Keeps freed memory of a CPU in the process, so that later passes do not pay page faults for it again.

    glibc returns large blocks to the operating system as soon as they are freed. On leaving, free memory is returned,
    and the thresholds, which hold for the whole process and cannot be read, are set to the largest values of glibc's
    own adjustment (mallopt(3)). Does nothing without glibc and on other devices, whose memory PyTorch keeps itself.
    """
    if device.type != "cpu" or _glibc("mallopt") is None:
        yield
        return
    mallopt, trim = _glibc("mallopt"), _glibc("malloc_trim")
    if not mallopt(_MMAP_THRESHOLD, _LARGEST):  # which is more than some versions take
        mallopt(_MMAP_THRESHOLD, _DYNAMIC_LARGEST)
    mallopt(_TRIM_THRESHOLD, _LARGEST)
    try:
        yield
    finally:
        mallopt(_MMAP_THRESHOLD, _DYNAMIC_LARGEST)
        mallopt(_TRIM_THRESHOLD, 2 * _DYNAMIC_LARGEST)
        trim(0)


def _glibc(name: str) -> Any:
    """A function of glibc, or None where another library allocates."""
    if not sys.platform.startswith("linux"):
        return None
    process = ctypes.CDLL(None)
    return getattr(process, name, None) if hasattr(process, "gnu_get_libc_version") else None
