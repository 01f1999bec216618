"""Peak memory of a piece of work: what its tensors take, and on a CPU the resident set of the process."""

import ctypes
import gc
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

_STATUS, _REFERENCES = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def peak_of_tensors(run: Callable[[], object], device: torch.device) -> int:
    """Bytes of tensors at the peak, beyond those that are there before: exact, whatever else the process does."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as profiler:
        run()
    results = profiler.profiler.kineto_results  # the events of allocations stand nowhere else
    held = peak = 0
    for event in sorted((e for e in results.events() if e.name() == "[memory]"), key=lambda e: e.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def peak_of_process(run: Callable[[], object]) -> int | None:
    """Bytes of the resident set at the peak, weights and libraries included; None where it cannot be measured.

    That is everywhere but on Linux. It holds what the allocator keeps for later, too, so that it depends on what ran
    before.
    """
    if not sys.platform.startswith("linux"):
        return None
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # only glibc has it
    if trim is not None:
        trim(0)
    try:
        _REFERENCES.write_text("5")  # proc(5): resets the peak of the resident set
    except OSError:
        return None
    run()
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024
