"""The edits that a server offers, by name: from folders of saved edits, and folders of such folders."""

import os
from collections.abc import Iterable
from pathlib import Path

from headedit.edits.files.format import holds_edits
from headedit.errors import HeadEditError

VARIABLE = "HEADEDIT_EDITS"
"""The environment variable that lists folders, separated as PATH is; an entry may be ``name=folder``."""


def listed_folders() -> list[str] | None:
    """The entries of the environment variable; None where it is not set, so that no edits are served."""
    text = os.environ.get(VARIABLE)
    return None if text is None else [entry for entry in text.split(os.pathsep) if entry]


def named_edits(entries: Iterable[str]) -> dict[str, Path]:
    """Folders of saved edits by the name that a request chooses them by.

    Args:
        entries: a folder of saved edits, which is served by its own name; a folder of such folders, which may hold none
            yet; or ``name=folder``.

    Raises:
        HeadEditError: there is no such folder, one that is given a name holds no edits, or two edits have one name.
    """
    found: dict[str, Path] = {}
    for entry in entries:
        for name, folder in _edits_of(entry):
            if name in found and found[name] != folder:
                raise HeadEditError(
                    f"Two edits are called '{name}': {found[name]} and {folder}. Give one of them another name, as in "
                    f"other={folder}."
                )
            found[name] = folder
    return found


def _edits_of(entry: str) -> list[tuple[str, Path]]:
    name, given, path = entry.partition("=")
    if Path(entry).is_dir() or not given:
        name, path = "", entry
    folder = Path(path).absolute()
    if not folder.is_dir():
        raise HeadEditError(f"{VARIABLE}: {path} is not a folder.")
    if holds_edits(folder):
        return [(name or folder.name, folder)]
    inside = [child for child in sorted(folder.iterdir()) if child.is_dir() and holds_edits(child)]
    if name:
        raise HeadEditError(f"{VARIABLE}: {entry}: holds no saved edits.")
    return [(child.name, child) for child in inside]


def roots(entries: Iterable[str]) -> list[Path]:
    """The folders that entries name, resolved; what is below them may be loaded while the server runs."""
    return [Path(entry if Path(entry).is_dir() else entry.partition("=")[2]).resolve() for entry in entries]
