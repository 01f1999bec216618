"""Kernels that a pass launches and the time they take, which tells the time of the device from that of the host."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch._C._autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from headedit.bench.cost.methods import Prepared, bare, edited, sites_of, upper_bound
from headedit.bench.cost.shapes import random_ids
from headedit.bench.cost.timing import as_is
from headedit.bench.cost.workloads import DECODED, Run, decode, forward, training_step
from headedit.bench.results import Row
from headedit.hf.config import text_config

_WARM_UP = 2


class _Work(NamedTuple):
    """What is profiled: which reference it is compared with, how it is made ready, and of how many passes it is."""

    against: str
    reference: Callable[[nn.Module], Prepared]
    ready: Callable[[Prepared, Tensor], Callable[[], Run]]
    passes: int = 1


_WORK = {
    "forward": _Work("bare", bare, lambda prepared, ids: as_is(forward(prepared, ids))),
    "step": _Work("upper bound", upper_bound, lambda prepared, ids: as_is(training_step(prepared, ids))),
    "decode": _Work("bare", bare, lambda prepared, ids: decode(prepared, ids[:1]), DECODED),
}


def launches(model: nn.Module, batch: int, tokens: int) -> list[Row]:
    """Kernels and busy time of a forward pass, a training step and decoding of one row, edited against their reference.

    On a CPU, operators, those within others and views too, and the time within them.

    Args:
        model: its weights are shared by all.
        batch, tokens: of the forward pass and the step.

    Returns:
        Rows as those of ``measure_cost``: ``kernels``, how many more per site and pass; ``busy``, in milliseconds.
    """
    device = next(model.parameters()).device
    ids = random_ids(text_config(model).vocab_size, batch, tokens, device)
    sites, rows = len(sites_of(model)), []
    for name, work in _WORK.items():
        both = (work.ready(method(model), ids) for method in (work.reference, edited))
        (few, less), (many, more) = (_profiled(ready, device) for ready in both)
        row: Row = dict.fromkeys(("ratio", "low", "high", "tokens_per_second", "runs", "at_most"))
        row |= {"method": "edited", "against": work.against}
        per_site = (many - few) / sites / work.passes
        rows.append(row | {"workload": f"{name}, kernels", "value": per_site, "unit": "per site"})
        rows.append(row | {"workload": f"{name}, busy", "value": more, "unit": "ms", "ratio": more / less})
    return rows


def _profiled(ready: Callable[[], Run], device: torch.device) -> tuple[int, float]:
    """How many kernels a run launches, and the milliseconds that the device is busy with them."""
    for _ in range(_WARM_UP):
        ready()()
    run = ready()
    on_gpu = device.type == "cuda"
    with profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]) as found:
        run()
        if on_gpu:
            torch.cuda.synchronize(device)
    kind = DeviceType.CUDA if on_gpu else DeviceType.CPU
    events = [event for event in found.key_averages() if event.device_type == kind]
    busy = sum(event.self_device_time_total if on_gpu else event.self_cpu_time_total for event in events)
    return sum(event.count for event in events), busy / 1000
