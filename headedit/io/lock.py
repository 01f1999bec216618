"""A folder that one process at a time writes into."""

import contextlib
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from headedit.errors import HeadEditError

fcntl: Any
try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

_PATIENCE = 6.0  # seconds, in which the workers of a process that was killed have ended too
_held: dict[Path, int] = {}


@contextlib.contextmanager
def writing_alone(folder: Path, what: str) -> Iterator[None]:
    """A context in which no other process, nor another thread of this one, is in this context for the same folder.

    The lock is the system's, on the folder itself, which is made if it does not exist: it leaves no file, and ends with
    the process. Where folders cannot be locked, as on Windows and some network file systems, nothing is refused. A
    thread may enter it again.

    Args:
        folder: the folder.
        what: what a process does there, for the message, such as "trains".

    Raises:
        HeadEditError: another one is in it, or the folder cannot be made.
    """
    place = folder.absolute().resolve()
    if _held.get(place) == threading.get_ident():
        yield
        return
    descriptor = _open(folder)
    try:
        if descriptor is not None and not _locked(descriptor):
            raise HeadEditError(
                f"{folder}: another process {what} into this folder. Wait until it has ended, or give each its own; "
                "processes that are to work together are started by torchrun or accelerate launch."
            )
        _held[place] = threading.get_ident()
        yield
    finally:
        if _held.get(place) == threading.get_ident():
            del _held[place]
        if descriptor is not None:
            os.close(descriptor)


def _open(folder: Path) -> int | None:
    """A descriptor of a folder; None where there is none to lock."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return None if fcntl is None else os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise HeadEditError(f"{folder}: cannot be written ({error.strerror}). Choose another output folder.") from None


def _locked(descriptor: int) -> bool:
    """Locks a descriptor until it is closed; False where another holds it, True where it cannot be locked."""
    end = time.monotonic() + _PATIENCE
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() > end:
                return False
            time.sleep(0.05)
        except OSError:  # the file system knows no such lock
            return True
