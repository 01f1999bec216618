"""What a part has measured so far, in a JSON file that is whole at every moment."""

import json
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from headedit.bench.results import Row
from headedit.io.files import write_atomically

Data = dict[str, Any]
"""The record of a part as plain data, with these keys:

part: its name.
state: running, finished, stopped (at its limit) or failed (its process ended early).
reason: of the last two; else None.
settings: what it is run with.
machine: device, its memory if it is a GPU, and versions.
seconds: how long its last run took.
begun: the item that is being measured; None between items.
items: by name, what was measured: ``seconds``, and ``rows`` or ``error``; of a test, and of a cell of a comparison that
    was left out, ``outcome`` and ``message``.
"""

FAILED = ("failed", "error")
"""Outcomes of a test that did not pass."""


def path_of(folder: Path, part: str) -> Path:
    """The file of a part's record."""
    return folder / f"{part}.json"


def read_record(folder: Path, part: str) -> Data | None:
    """The record of a part; None where it was not begun."""
    path = path_of(folder, part)
    if not path.is_file():
        return None
    found: Data = json.loads(path.read_text(encoding="utf-8"))
    return found


def write_record(folder: Path, data: Data) -> None:
    """Writes the record of a part in one step."""
    write_atomically(path_of(folder, data["part"]), (json.dumps(data, indent=1, default=str) + "\n").encode())


def new_record(part: str, settings: Data) -> Data:
    """The record of a part of which nothing is measured."""
    data: Data = {"part": part, "state": "running", "reason": None, "settings": settings, "machine": {}}
    return data | {"seconds": 0.0, "begun": None, "items": {}}


def failures(data: Data) -> list[str]:
    """Names of what was tried and failed, in a part."""
    return [name for name, item in data["items"].items() if "error" in item or item.get("outcome") in FAILED]


def is_complete(data: Data) -> bool:
    """Whether everything in a part was measured and nothing failed."""
    return data["state"] == "finished" and not failures(data)


class Recorder:
    """Measures the items of a part, each of which is written as soon as it is there.

    Args:
        folder: where the record is.
        part: its name.
        settings: what it is run with.

    Fields:
        data: the record.
        failed: names of what failed before, or was being measured at the limit; it is measured again.
    """

    def __init__(self, folder: Path, part: str, settings: Data) -> None:
        self._folder = folder
        self._started = time.perf_counter()
        self.data = read_record(folder, part) or new_record(part, settings)
        self.failed = failures(self.data)
        for name in self.failed:
            del self.data["items"][name]
        if self.data["begun"] is not None:
            self.failed.append(self.data["begun"])
        self.data |= {"state": "running", "reason": None, "begun": None, "settings": settings}
        self.write()

    def has(self, name: str) -> bool:
        """Whether an item is there."""
        return name in self.data["items"]

    def begin(self, name: str) -> None:
        """Writes which item is being measured, so that it is known where the process ends in it."""
        self.write(begun=name)

    def add(self, name: str, item: Data) -> None:
        """Adds an item and writes the record."""
        self.data["items"][name] = item
        self.write(begun=None)
        print(f"{item['seconds']:7.1f} s  {name}: {item.get('outcome') or item.get('error') or 'measured'}", flush=True)

    def measure(self, name: str, rows: Callable[[], list[Row]]) -> None:
        """Measures an item unless it is there; an error becomes its result, and the part goes on."""
        if self.has(name):
            return
        self.begin(name)
        started = time.perf_counter()
        try:
            found: Data = {"rows": rows()}
        except Exception as error:
            traceback.print_exc()
            found = {"error": f"{type(error).__name__}: {error}"}
        self.add(name, {"seconds": time.perf_counter() - started, **found})

    def write(self, **changes: Any) -> None:
        """Writes the record."""
        self.data |= {"seconds": time.perf_counter() - self._started, **changes}
        write_record(self._folder, self.data)
