"""``headedit.compare``: methods against each other on one model and some tasks, resumed where it was stopped."""

import gc
from collections.abc import Callable, Mapping
from os import PathLike
from typing import Any

from torch import nn

from headedit.bench.compare.cells import Cell, plan_cells, run_cell
from headedit.bench.compare.config import CompareConfig
from headedit.bench.compare.learning import METHODS
from headedit.bench.compare.result import result_of
from headedit.bench.results import BenchResult, Row
from headedit.errors import HeadEditError
from headedit.io.bars import bars_of_libraries
from headedit.io.files import check_writable


def compare(
    config: "str | PathLike[str] | CompareConfig",
    changes: Mapping[str, Any] | None = None,
    *,
    say: Callable[[str], None] = print,
    on_cell: Callable[[BenchResult], None] | None = None,
) -> BenchResult:
    """Trains and tests methods on tasks, each on the same examples, and returns one table.

    Every cell, a method on a task from so many examples with one seed, has a folder in ``config.output``. Cells that
    are finished there are not run again, so a comparison that was stopped at any moment is continued by the same call.

    >>> result = headedit.compare("compare.yaml")  # doctest: +SKIP
    >>> print(result.markdown())  # doctest: +SKIP

    Args:
        config: a YAML file, or what it holds; see ``CompareConfig``.
        changes: values that replace those of the file, by key, such as ``{"model.name": "./my-model"}``.
        say: called with a line about each cell.
        on_cell: called with the result so far after each cell that was run.

    Returns:
        A row per cell, a summary per task, size and method, and the tables.

    Raises:
        HeadEditError: the file is wrong, a method or task does not exist, or the output holds another comparison.
    """
    if not isinstance(config, CompareConfig):
        config = CompareConfig.read(config, changes)
    elif changes:
        raise HeadEditError("changes: are for a comparison that is read from a file; change the config itself.")
    names = list(config.settings) or list(METHODS)
    cells = plan_cells(config, names)
    rows: list[Row | None] = [cell.row() for cell in cells]
    check_writable(config.output)
    tokenizer = config.model.load_tokenizer()
    for i, cell in enumerate(cells):
        if rows[i] is not None:
            continue
        say(f"[{i + 1}/{len(cells)}] {cell.name}")
        with bars_of_libraries(False):
            row = rows[i] = run_cell(cell, lambda: _base(config), tokenizer, lambda line: say(f"    {line}"))
        gc.collect()  # a model and its hooks hold each other
        say(f"    {_reported(row)}")
        if on_cell is not None:
            on_cell(result_of(config, names, [found for found in rows if found is not None]))
    return result_of(config, names, [found for found in rows if found is not None])


def planned(config: CompareConfig) -> list[tuple[Cell, bool]]:
    """The cells of a comparison, and whether each is finished."""
    return [(cell, cell.row() is not None) for cell in plan_cells(config, list(config.settings) or list(METHODS))]


def _base(config: CompareConfig) -> nn.Module:
    return config.model.load()


def _reported(row: Row) -> str:
    if "error" in row:
        return f"cannot be used: {row['error']}"
    notes = f"; {row['notes']}" if row["notes"] else ""
    score = f"{row['metric']} {row['score']:.3f} ({row['low']:.3f} to {row['high']:.3f})"
    return f"{score}, {row['parameters']:,} parameters, {row['seconds']:.0f} s of training{notes}"
