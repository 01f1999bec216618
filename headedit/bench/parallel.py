"""Runs many independent units of work, one after another or in several processes, with a progress bar."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from typing import Any

import torch

from headedit.bench.results import Row
from headedit.errors import HeadEditError
from headedit.io.bars import tqdm


def run_units(
    work: Callable[..., Row], units: Sequence[dict[str, Any]], *, names: Sequence[str], jobs: int, progress: bool
) -> list[Row]:
    """Calls a function with each set of arguments, on one thread each, so that the rows do not depend on ``jobs``.

    With more than one job, processes are spawned; a script that uses them needs the usual
    ``if __name__ == "__main__":``.

    Args:
        work: a function at the top of a module.
        units: keyword arguments of each call, picklable.
        names: what to call each unit on the bar.
        jobs: number of processes; 1 is this one.
        progress: show a bar, on the error stream.

    Returns:
        What the function returned, in the order of the units.

    Raises:
        HeadEditError: ``jobs`` is below 1.
    """
    if jobs < 1:
        raise HeadEditError(f"jobs: found {jobs}, expected 1 or more.")
    with tqdm(total=len(units), unit="run", disable=not progress, dynamic_ncols=True) as bar:
        if jobs == 1:
            with _quiet(), _one_thread():
                return [_done(work, unit, name, bar) for unit, name in zip(units, names, strict=True)]
        with ProcessPoolExecutor(min(jobs, len(units)) or 1, get_context("spawn"), _start_worker) as pool:
            futures = {pool.submit(work, **unit): i for i, unit in enumerate(units)}
            try:
                return _collected(futures, names, bar)
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise


def _done(work: Callable[..., Row], unit: dict[str, Any], name: str, bar: Any) -> Row:
    bar.set_description(name)
    row = work(**unit)
    bar.update()
    return row


def _collected(futures: dict[Future[Row], int], names: Sequence[str], bar: Any) -> list[Row]:
    found: dict[int, Row] = {}
    running = list(names)
    bar.set_description(running[0] if running else "")
    for future in as_completed(futures):
        found[futures[future]] = future.result()
        left = [name for i, name in enumerate(running) if i not in found]
        bar.set_description(left[0] if left else "done")
        bar.update()
    return [found[i] for i in range(len(futures))]


def _start_worker() -> None:
    from transformers.utils import logging

    torch.set_num_threads(1)
    logging.set_verbosity_error()
    logging.disable_progress_bar()


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silences transformers' own bars and hints, which every loaded model would show."""
    from transformers.utils import logging

    level, shown = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if shown:
            logging.enable_progress_bar()
