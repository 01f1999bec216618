"""Files written in one step: at every moment the old content or the whole new one is on disk."""

import contextlib
import os
import re
import secrets
import tempfile
from collections.abc import Iterator
from os import PathLike
from pathlib import Path
from typing import Any, BinaryIO

from headedit.errors import HeadEditError

fcntl: Any
try:
    import fcntl
except ImportError:  # Windows, which lets nobody delete a file that is open
    fcntl = None

_TEMPORARY = re.compile(r"\.[0-9a-f]{24}\.headedit-tmp")
_TRIES = 5


def check_writable(directory: "str | PathLike[str]") -> Path:
    """Checks that a folder can be created and written to, and returns it as a path.

    Nothing is created, for other processes may use the folder too.

    Raises:
        HeadEditError: it cannot be created or written to; raised before any work is done.
    """
    folder = Path(directory)
    try:
        existing = next(path for path in (folder, *folder.absolute().parents) if path.is_symlink() or path.exists())
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        raise HeadEditError(f"{folder}: cannot be written ({error.strerror}). Choose another output folder.") from None
    return folder


def write_atomically(path: Path, payload: bytes) -> None:
    """Writes a file in one step: at every moment either the old content or the whole new one is on disk.

    The new content has no name until it is whole, where the system can do that; then it has a temporary one for an
    instant. A process that is killed in that instant leaves the temporary file, and the next write into the folder
    removes it: a writer holds a lock on its file, which ends with its process, on whatever machine it ran.
    """
    _remove_abandoned(path.parent)
    for left in reversed(range(_TRIES)):
        temporary = path.parent / f".{secrets.token_hex(12)}.headedit-tmp"
        try:
            with _written(temporary, payload):
                os.replace(temporary, path)
            return
        except FileNotFoundError:  # another writer took the file for abandoned before it could be locked
            if not (left and path.parent.is_dir()):
                raise
        finally:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def _written(temporary: Path, payload: bytes) -> Iterator[None]:
    """A context in which a whole file with this name and content exists, locked by this process."""
    file = _write_unnamed(temporary, payload)
    if file is None:
        file = _fill(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666), payload)
    with file:
        if fcntl is None:
            file.close()  # only a closed file can be moved on Windows
        yield


def _write_unnamed(temporary: Path, payload: bytes) -> BinaryIO | None:
    """Writes a file without a name and then names it; None where the system or the file system cannot do that."""
    if not hasattr(os, "O_TMPFILE"):
        return None
    try:
        descriptor = os.open(temporary.parent, os.O_WRONLY | os.O_TMPFILE, 0o666)
    except OSError:
        return None
    file = _fill(descriptor, payload)
    try:
        # given a descriptor, Python links the file that the link leads to, and not the link
        os.link(f"/proc/self/fd/{descriptor}", temporary, src_dir_fd=descriptor, follow_symlinks=True)
    except OSError:
        file.close()
        return None
    return file


def _fill(descriptor: int, payload: bytes) -> BinaryIO:
    """An open file with this content, on disk and locked."""
    file = os.fdopen(descriptor, "wb")
    try:
        _lock(descriptor)
        file.write(payload)
        file.flush()
        os.fsync(descriptor)
    except BaseException:
        file.close()
        raise
    return file


def _remove_abandoned(folder: Path) -> None:
    """Removes the temporary files of processes that were killed while they wrote into a folder."""
    with contextlib.suppress(OSError):
        for name in filter(_TEMPORARY.fullmatch, os.listdir(folder)):
            with contextlib.suppress(OSError), open(folder / name, "rb") as file:
                if _lock(file.fileno()):
                    os.unlink(folder / name)


def _lock(descriptor: int) -> bool:
    """Locks a file until it is closed; False where another process has done so, or files cannot be locked."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
