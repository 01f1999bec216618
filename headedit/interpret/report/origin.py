"""Where a run comes from: a sentence on what it is, its date, its data, its command and the versions behind it."""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from headedit.errors import HeadEditError
from headedit.hf.names import portable_name
from headedit.interpret.report.folder import RunFolder
from headedit.io.yaml import read_yaml
from headedit.runs.files import RUN_FILE, RUN_YAML
from headedit.version import __version__

_SETS = {"train": "to train on", "valid": "to validate on", "test": "to test on"}
_SIZES = {"train": "train_examples", "valid": "valid_examples", "test": "test_examples"}


def sentence(run: RunFolder) -> str:
    """What the edits are, for somebody who has not heard of them."""
    edited, heads = run.source.module.count_open()["any"]
    model, recipe = portable_name(run.base_model) or "a language model", run.record.get("recipe")
    return (
        f"Small edits to {edited:,} of {heads:,} {' and '.join(run.source.module.kinds())} heads of {model}"
        f"{f', learned by the recipe {recipe}' if recipe else ''}: each adds a vector to a head's output, scales that "
        "output, or does both, and the model's own weights stay as they are."
    )


def origin(run: RunFolder, command: str | None) -> list[tuple[str, str, bool]]:
    """(what, value, whether the value is code) of how the run and this page were made.

    Args:
        run: on disk.
        command: that made the page; None where it was made in Python.
    """
    versions = run.saved.get("versions")
    known = ", ".join(f"{name} {version}" for name, version in versions.items()) if isinstance(versions, dict) else ""
    made = ("train again with", f"headedit train {run.path.resolve().name}/{RUN_YAML}", True)
    date = run.record.get("date") or f"{_day((run.path / RUN_FILE).stat().st_mtime)}, the date of {RUN_FILE}"
    return [
        ("run", date, False),
        ("data", "; ".join(_data(run)) or "not recorded", False),
        made if run.config is not None else ("command", f"not recorded: the run left no {RUN_YAML}", False),
        ("versions", known or "not recorded", False),
        ("page", f"{_day(datetime.now().timestamp())}, by headedit {__version__}", False),
        *([("page made with", command, True)] if command else []),
    ]


def _day(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds, timezone.utc):%Y-%m-%d}"


def _data(run: RunFolder) -> Iterator[str]:
    """Number of examples of every set, and the names of their files, without the folders that they are in."""
    files = _files(run)
    for name, purpose in _SETS.items():
        count, named = run.record.get(_SIZES[name]), files.get(name, "")
        if count or named:
            yield " ".join([*([f"{count:,}"] if count else []), purpose, *([f"({named})"] if named else [])])


def _files(run: RunFolder) -> dict[str, str]:
    if run.config is None:
        return {}
    data: Any = None
    with suppress(HeadEditError, OSError, KeyError, TypeError):
        read: Any = read_yaml(run.path / RUN_YAML)
        data = read["data"]
    return {name: found for name in _SETS if (found := _named(data.get(name)))} if isinstance(data, Mapping) else {}


def _named(source: object) -> str:
    sources = source if isinstance(source, list) else [source]
    names = (Path(one).name if Path(one).suffix else portable_name(one) for one in sources if isinstance(one, str))
    return ", ".join(filter(None, names))
