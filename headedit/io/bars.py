"""Progress bars: shown in a terminal and in a notebook, and not written into log files."""

import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from tqdm.auto import tqdm as any_tqdm

from headedit.io.wrapping import wrap


def is_shown() -> bool:
    """Whether a bar would be seen: stderr is a terminal, or this is a notebook."""
    return _is_notebook() or bool(getattr(sys.stderr, "isatty", lambda: False)())


def _is_notebook() -> bool:
    """Whether a kernel of Jupyter runs this program; that its package is imported does not tell."""
    ipython: Any = sys.modules.get("IPython")
    shell = ipython.get_ipython() if hasattr(ipython, "get_ipython") else None
    return shell is not None and "IPKernelApp" in shell.config


def tqdm(*args: Any, disable: bool = False, **kwargs: Any) -> Any:
    """A bar of tqdm with the same arguments, which is disabled where it would be written into a file or a pipe."""
    return any_tqdm(*args, disable=disable or not is_shown(), **kwargs)


def write_above_bars(text: str) -> None:
    """Writes a text to stderr, above any bar, in lines as wide as the terminal, where bars are shown."""
    if is_shown():
        any_tqdm.write(wrap(text, shutil.get_terminal_size().columns, indent="  "), file=sys.stderr)


@contextmanager
def bars_of_libraries(wanted: bool = True) -> Iterator[None]:
    """A context in which transformers, datasets and the hub client show their bars, if they are wanted and seen.

    Bars that were disabled before stay disabled. Libraries that are not imported are left alone.

    Args:
        wanted: whether to show bars at all.
    """
    with ExitStack() as stack:
        if not (wanted and is_shown()):
            for is_on, disable, enable in _switches():
                if is_on():
                    disable()
                    stack.callback(enable)
        yield


def _switches() -> Iterator[tuple[Callable[[], bool], Callable[[], None], Callable[[], None]]]:
    """For each library that is imported: whether its bars are on, and functions that turn them off and on."""
    if "transformers" in sys.modules:  # with its bars, those of the hub client
        from transformers.utils import logging

        yield logging.is_progress_bar_enabled, logging.disable_progress_bar, logging.enable_progress_bar
    datasets: Any = sys.modules.get("datasets")
    if hasattr(datasets, "are_progress_bars_disabled"):
        yield (
            lambda: not datasets.are_progress_bars_disabled(),
            datasets.disable_progress_bars,
            datasets.enable_progress_bars,
        )
