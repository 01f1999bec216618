"""Folders written in one step: complete under their name, or not there at all."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from headedit.errors import HeadEditError


def check_free(folder: Path) -> None:
    """Raises a HeadEditError where there is a file of this name, or a folder that is not empty."""
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise HeadEditError(f"{folder}: already exists and is not an empty folder. Choose another one.")


@contextlib.contextmanager
def whole_folder(folder: Path, what: str) -> Iterator[Path]:
    """A context that gives an empty folder next to a place, which gets that name when the context is left.

    Args:
        folder: the place; nothing, or an empty folder, may be there.
        what: what is written, for messages.

    Raises:
        HeadEditError: it cannot be written, or the folder is not empty; nothing is left of the attempt.
    """
    check_free(folder)
    missing = [path for path in folder.absolute().parents if not path.exists()]
    scratch = None
    try:
        folder.absolute().parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(dir=folder.absolute().parent, prefix=f".{folder.name}."))
        umask = os.umask(0)
        os.umask(umask)
        scratch.chmod(0o777 & ~umask)
        yield scratch
        if folder.is_dir():
            folder.rmdir()
        scratch.rename(folder)
    except BaseException as error:
        if scratch is not None:
            shutil.rmtree(scratch, ignore_errors=True)
        for path in missing:
            if path.is_dir() and not any(path.iterdir()):
                path.rmdir()
        if isinstance(error, OSError):
            raise HeadEditError(f"{folder}: {what} cannot be written ({error}).") from None
        raise
