"""The part ``compare``: the cells of a comparison in several processes side by side, the most telling first."""

import gc
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import Any

import torch

from headedit.bench.compare.cells import Cell, plan_cells, run_cell
from headedit.bench.compare.config import CompareConfig
from headedit.bench.compare.learning import METHODS
from headedit.bench.compare.result import result_of
from headedit.bench.gpu.record import Data, Recorder
from headedit.bench.results import Row
from headedit.errors import HeadEditError
from headedit.io.bars import bars_of_libraries
from headedit.io.files import check_writable


def measure(recorder: Recorder, settings: Data) -> None:
    """Runs the cells that are not finished, as ``headedit compare`` does; each of the two resumes the other's work.

    Args:
        recorder: takes a row per cell, without the values of its examples, and ``tables``, those of the comparison so
            far: title, header and cells of each.
        settings: ``comparison``, a file of ``headedit compare``, and ``jobs``, the number of processes.

    Raises:
        HeadEditError: the file is wrong, its output holds another comparison, or the process of a cell was ended.
    """
    config = CompareConfig.read(settings["comparison"])
    check_writable(config.output)
    cells, rows = in_order(config), {}
    for cell in cells:
        row = cell.row()  # what counts is what the comparison has on disk
        recorder.data["items"].pop(cell.name, None)
        if row is not None:
            rows[cell.name] = row
            recorder.data["items"][cell.name] = _item(row, row["seconds"])
    recorder.write(tables=_tables(config, list(rows.values())))
    left = [cell for cell in cells if cell.name not in rows]
    if not left:
        return
    with ProcessPoolExecutor(min(settings["jobs"], len(left)), get_context("spawn"), _begin) as pool:
        futures = {pool.submit(_run, cell): cell for cell in left}
        for future in as_completed(futures):
            name = futures[future].name
            try:
                seconds, row = future.result()
            except BrokenProcessPool:
                raise HeadEditError(
                    "The process of a cell was ended, as by the system when memory runs out. Finished cells are kept; "
                    "give fewer --jobs, and run the same command again."
                ) from None
            except Exception as error:
                recorder.add(name, {"seconds": 0.0, "error": f"{type(error).__name__}: {error}"})
                continue
            rows[name] = row
            recorder.data["tables"] = _tables(config, list(rows.values()))
            recorder.add(name, _item(row, seconds))


def in_order(config: CompareConfig) -> list[Cell]:
    """All cells of a comparison: seed by seed, in it size by size, in it method by method, each on every task.

    What comes first in the file is run first, so that its order says what matters most.

    Raises:
        HeadEditError: a task or method does not exist, or its settings are impossible.
    """
    names = _names(config)
    tasks = list(config.tasks)

    def place(cell: Cell) -> tuple[int, ...]:
        of_cell = config.seeds.index(cell.seed), config.sizes.index(cell.size)
        return *of_cell, names.index(cell.method), tasks.index(cell.task)

    return sorted(plan_cells(config, names), key=place)


def _names(config: CompareConfig) -> list[str]:
    return list(config.settings) or list(METHODS)


def _tables(config: CompareConfig, rows: Sequence[Row]) -> list[Any]:
    return [list(table) for table in result_of(config, _names(config), rows).tables]


def _item(row: Row, seconds: float) -> Data:
    if "error" in row:  # a package that is not installed, or a method that does not fit the model
        return {"seconds": seconds, "outcome": "skipped", "message": row["error"], "rows": []}
    return {"seconds": seconds, "rows": [{key: value for key, value in row.items() if key != "values"}]}


def _begin() -> None:
    """Begins a process: on one thread, for there are others."""
    torch.set_num_threads(1)


def _run(cell: Cell) -> tuple[float, Row]:
    """Runs a cell in this process; how many seconds it took, and its row."""
    started = time.perf_counter()
    config = cell.config
    with bars_of_libraries(False):
        row = run_cell(cell, config.model.load, config.model.load_tokenizer(), lambda line: _say(cell, line))
    gc.collect()  # a model and its hooks hold each other
    if torch.cuda.is_available():
        torch.cuda.empty_cache()  # for the processes next to this one
    return time.perf_counter() - started, row


def _say(cell: Cell, line: str) -> None:
    print(f"{cell.name}: {line}", flush=True)
