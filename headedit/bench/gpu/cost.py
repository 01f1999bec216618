"""The part ``cost``: steps, passes, memory, attaching and operators, the most telling first."""

import gc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import nn

from headedit.bench.cost import METHODS, Shape, measure_cost
from headedit.bench.cost.shapes import build
from headedit.bench.gpu.launches import launches
from headedit.bench.gpu.record import Data, Recorder
from headedit.bench.gpu.sizes import Size, builder, sizes_of
from headedit.bench.results import Row

TRAINED = ("edited", "lora", "ia3")
INFERRED = ("edited", "hardened", "merged")
_SMALL = Shape(layers=1, hidden=32, heads=2, batch=1, tokens=4)

Item = tuple[str, Callable[[], list[Row]]]
"""The name of an item, and what measures it."""


def measure(recorder: Recorder, settings: Data) -> None:
    """Measures all items.

    Args:
        recorder: takes the rows of ``measure_cost``, with ``shape``, ``batch`` and ``tokens``, one workload per item.
        settings: ``device`` and ``shapes``, names of sizes.
    """
    device = settings["device"]
    sizes = sizes_of(settings["shapes"], device)
    methods, left_out = _available(device)
    recorder.write(left_out=left_out)
    model_of = builder()

    for tier in (_batches, _long):
        for size in sizes:
            for name, rows in tier(size, model_of, methods):
                recorder.measure(name, rows)
                free(device)


def _batches(size: Size, model_of: Callable[[Size], nn.Module], methods: Sequence[str]) -> Iterator[Item]:
    batch = size.batches[0]
    run = partial(_item, size, model_of)
    yield run("step", batch, [name for name in TRAINED if name in methods])
    yield run("forward", batch, [name for name in INFERRED if name in methods])
    yield run("memory", batch, [name for name in TRAINED if name in methods])
    yield run("attach", batch, ["edited"])
    yield run("operators", batch, ["edited"])
    yield f"{size.name}, launches, {batch[0]} x {batch[1]}", partial(_launches, size, model_of)


def _long(size: Size, model_of: Callable[[Size], nn.Module], methods: Sequence[str]) -> Iterator[Item]:
    batch = size.batches[1]
    run = partial(_item, size, model_of)
    yield run("step", batch, [name for name in TRAINED if name in methods], less=2)
    yield run("forward", batch, ["edited"], less=2)
    yield run("prefill", batch, ["edited"])
    yield run("memory", batch, ["edited"])


def _launches(size: Size, model_of: Callable[[Size], nn.Module]) -> list[Row]:
    batch, tokens = size.batches[0]
    rows = launches(model_of(size), batch, tokens)
    return [{"shape": size.name, "batch": batch, "tokens": tokens} | row for row in rows]


def _item(
    size: Size,
    model_of: Callable[[Size], nn.Module],
    workload: str,
    batch: tuple[int, int],
    methods: Sequence[str],
    *,
    less: int = 1,
) -> Item:
    rounds = max(2, size.rounds.get(workload, 1) // less)

    def rows() -> list[Row]:
        shape = size.with_batch(*batch)
        model = model_of(size)
        cost = measure_cost(shape, model=model, methods=methods, workloads=[workload], repeats=rounds, progress=False)
        return [{"shape": size.name, "batch": batch[0], "tokens": batch[1]} | row for row in cost.rows]

    return f"{size.name}, {workload}, {batch[0]} x {batch[1]}", rows


def _available(device: str) -> tuple[list[str], dict[str, str]]:
    """Methods that work on a small model, and why others do not."""
    model = build(replace(_SMALL, device=device))
    works, left_out = [], {}
    for name in dict.fromkeys([*TRAINED, *INFERRED]):
        try:
            METHODS[name](model)
            works.append(name)
        except Exception as error:
            left_out[name] = f"{type(error).__name__}: {error}"
    return works, left_out


def free(device: str) -> None:
    """Gives memory back that no tensor uses any more, so that the next item begins with all of it."""
    gc.collect()
    if torch.device(device).type == "cuda":
        torch.cuda.empty_cache()
