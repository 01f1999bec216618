"""Files written in one step: at every moment the old content or the whole new one is on disk."""

import os
import tempfile
from os import PathLike
from pathlib import Path

from headedit.errors import HeadEditError


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
    """Writes a file in one step: at every moment either the old content or the whole new one is on disk."""
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(payload)
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
