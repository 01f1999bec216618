"""What a routed batch costs: a different adapter in each row, against one adapter and against the bare model."""

import time
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch

from headedit.bench.cost.shapes import Shape, build, random_ids
from headedit.bench.cost.timing import alternate, as_is
from headedit.bench.results import Row
from headedit.edits import EditConfig, attach

NUMBERS = (1, 8, 64, 256, 1000)
"""Numbers of adapters on the model."""

ROUTED = Shape(layers=8, hidden=512, heads=8, batch=64, tokens=16)


@torch.no_grad()
def route_cost(
    shape: Shape = ROUTED, *, numbers: Sequence[int] = NUMBERS, repeats: int = 20, progress: bool = True
) -> list[Row]:
    """Measures a forward pass over a routed batch, by the number of adapters on the model.

    The rows of the batch use as many different adapters as there are, one per row.

    Args:
        shape: of the model and the batch.
        numbers: numbers of adapters, in ascending order.
        repeats: timed runs of each.
        progress: show bars.

    Returns:
        A row per number: ``adapters``; ``rows`` of the batch; ``forward_ms`` routed, with ``against_one``, the ratio to
        one adapter for all rows, and ``against_bare``; ``enter_first_ms`` and ``enter_ms``, the time to enter ``route``
        with adapters that were not used before, and again; ``add_ms``, the time to add one adapter, None where none was
        added.
    """
    model = build(shape)
    device = next(model.parameters()).device
    ids = random_ids(shape.vocab, shape.batch, shape.tokens, device)
    edits = attach(model, config=EditConfig(init_std=1e-2))
    rows: list[Row] = []
    for number in numbers:
        started, before = time.perf_counter(), len(edits.adapters)
        for i in range(before, number):
            edits.add_adapter(f"a{i}")
        added = (time.perf_counter() - started) / max(1, number - before)
        names = edits.adapters[:: max(1, number // shape.batch)]
        of_rows = [names[i % len(names)] for i in range(shape.batch)]
        edits.module.eval()

        def enter(of_rows: list[str] = of_rows) -> None:
            with edits.route(of_rows):
                pass

        first = _seconds(enter)
        variants = {
            "bare": partial(_within, model, ids, edits.disable_adapter),
            "one": partial(_within, model, ids, ExitStack),
            "routed": partial(_within, model, ids, partial(edits.route, of_rows)),
        }
        timings = alternate(variants, repeats, device, what=f"{number} adapters", progress=progress)
        entering = alternate({"enter": as_is(enter)}, min(repeats, 10), device)
        routed = timings["routed"].median
        rows.append(
            {
                "adapters": number,
                "rows": shape.batch,
                "forward_ms": routed,
                "against_one": routed / timings["one"].median,
                "against_bare": timings["routed"].ratio,
                "enter_first_ms": 1000 * first,
                "enter_ms": entering["enter"].median,
                "add_ms": 1000 * added if number > before else None,
            }
        )
    return rows


def _within(model: Any, ids: torch.Tensor, context: Any) -> Any:
    """A forward pass in a context; entering the context is not timed."""
    stack = ExitStack()
    stack.enter_context(context())

    def run() -> None:
        with stack:
            model(input_ids=ids, use_cache=False)

    return run


def _seconds(run: Any) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started
