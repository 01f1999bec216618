"""The part ``decoding``: prefill and decoding of few rows and of many, with each cache, and compiled."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from torch import nn

from headedit.bench.cost import measure_cost
from headedit.bench.gpu.cost import Item, free
from headedit.bench.gpu.record import Data, Recorder
from headedit.bench.gpu.sizes import Size, builder, sizes_of
from headedit.bench.gpu.static_cache import Work, with_static_cache
from headedit.bench.results import Row

COMPILED_LAYERS = 4
"""Layers of the model that is compiled first: the time to compile grows with them."""


def measure(recorder: Recorder, settings: Data) -> None:
    """Measures all items, those of the first size first, its whole model compiled last.

    Args:
        recorder: takes the rows of ``measure_cost``, with ``shape``, ``batch`` and ``tokens``, one workload per item.
        settings: ``device`` and ``shapes``, names of sizes.
    """
    device = settings["device"]
    sizes = sizes_of(settings["shapes"], device)
    model_of = builder()

    first = sizes[0]
    few = min(COMPILED_LAYERS, first.shape.layers)
    of_few = replace(first, name=f"{first.name}, {few} layers", shape=replace(first.shape, layers=few))
    items = [*_as_is(first, model_of), *_compiled(of_few, model_of)]
    for size in sizes[1:]:
        items += _as_is(size, model_of)
    items += _compiled(first, model_of) if few < first.shape.layers else []
    for name, rows in items:
        recorder.measure(name, rows)
        free(device)


def _as_is(size: Size, model_of: Callable[[Size], nn.Module]) -> list[Item]:
    work: tuple[Work, ...] = ("decode", "prefill")
    return [
        item
        for each in work
        for batch in size.decoding
        for item in (_dynamic(size, model_of, each, batch), _static(size, model_of, each, batch, compiled=False))
    ]


def _compiled(size: Size, model_of: Callable[[Size], nn.Module]) -> list[Item]:
    one, many = size.decoding
    what: tuple[tuple[Work, int], ...] = (("decode", one), ("decode", many), ("prefill", one))
    return [_static(size, model_of, work, batch, compiled=True) for work, batch in what]


def _dynamic(size: Size, model_of: Callable[[Size], nn.Module], work: Work, batch: int) -> Item:
    def rows() -> list[Row]:
        shape, model = size.with_batch(batch, size.prompt), model_of(size)
        options = {"methods": ["edited"], "workloads": [work], "repeats": size.rounds[work], "progress": False}
        return _labelled(size, batch, measure_cost(shape, model=model, **options).rows)  # type: ignore[arg-type]

    return f"{size.name}, {work}, {batch} x {size.prompt}", rows


def _static(size: Size, model_of: Callable[[Size], nn.Module], work: Work, batch: int, *, compiled: bool) -> Item:
    measured = partial(with_static_cache, rounds=size.rounds[work], compiled=compiled)
    name = f"{size.name}, {work}, {batch} x {size.prompt}, static cache{', compiled' if compiled else ''}"
    return name, lambda: _labelled(size, batch, measured(model_of(size), work, batch, size.prompt))


def _labelled(size: Size, batch: int, rows: list[Row]) -> list[Row]:
    return [{"shape": size.name, "batch": batch, "tokens": size.prompt} | row for row in rows]
