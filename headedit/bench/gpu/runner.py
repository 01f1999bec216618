"""Runs the parts one after another, each in a process of its own that is ended at its time limit."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from headedit.bench.gpu.record import Data, is_complete, new_record, read_record, write_record
from headedit.errors import HeadEditError

LIMITS = {"tests": 100.0, "cost": 130.0, "decoding": 220.0, "memory": 40.0, "compare": 300.0}
"""Names of the parts, and the seconds that each may take by default."""

_LAST_LINES = 15


def run_parts(
    folder: Path,
    settings: Data,
    limits: Mapping[str, float],
    *,
    own: Mapping[str, Data] | None = None,
    report: Callable[[Data, bool], None] = lambda data, skipped: None,
) -> list[Data]:
    """Runs parts whose results are not complete in a folder; what one measures is written at once and never lost.

    A part that was ended, or in which something failed, is resumed: what it has measured is kept, and the rest is
    measured.

    Args:
        folder: of the results, ``PART.json`` and ``PART.log``; it is created.
        settings: what all parts are run with; those that lie in the folder must have been run with the same.
        limits: the parts, and the seconds that each may take.
        own: further settings of single parts, by part. Another number of ``jobs`` is no other setting; with other
            ``cells`` a part is run again, however complete it was.
        report: called after each part with its record, and whether it was complete before.

    Returns:
        The records, one per part.

    Raises:
        HeadEditError: the folder holds results with other settings.
    """
    of_part = {part: settings | dict((own or {}).get(part, {})) for part in limits}
    for part, given in of_part.items():
        before = read_record(folder, part)
        if before is not None and _binding(before["settings"]) != _binding(given):
            raise HeadEditError(
                f"{folder / part}.json: it was measured with {_shown(before['settings'])}, and this run has "
                f"{_shown(given)}. Choose another --output, or delete the file to measure again."
            )
    folder.mkdir(parents=True, exist_ok=True)
    found: list[Data] = []
    for part, limit in limits.items():
        before = read_record(folder, part)
        cells = of_part[part].get("cells")
        skipped = before is not None and is_complete(before) and before["settings"].get("cells") == cells
        if not skipped:
            _run_part(folder, part, of_part[part], limit)
        found.append(read_record(folder, part) or new_record(part, of_part[part]))
        report(found[-1], skipped)
    return found


def _run_part(folder: Path, part: str, settings: Data, limit: float) -> None:
    log = folder / f"{part}.log"
    command = _command(part, folder, settings)
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            state = "finished" if process.wait(limit) == 0 else "failed"
        except subprocess.TimeoutExpired:
            state = "stopped"
        finally:
            _end(process)
    data = read_record(folder, part) or new_record(part, settings)
    reason = None
    if state == "stopped":
        reason = f"ended at its limit of {limit:g} s"
        data["seconds"] = limit
    elif state == "failed" or data["state"] != "finished":
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-_LAST_LINES:]
        state, reason = "failed", f"its process ended with code {process.returncode}:\n" + "\n".join(lines)
        if data["begun"] is not None:  # as by a fault of a kernel, which no error in Python tells of
            said = f"the process ended with code {process.returncode}"
            data["items"][data["begun"]] = {"seconds": 0.0, "error": said, "outcome": "error", "message": said}
    write_record(folder, data | {"state": state, "reason": reason})


def _command(part: str, folder: Path, settings: Data) -> list[str]:
    return [sys.executable, "-m", "headedit.bench.gpu.part", part, str(folder), json.dumps(settings)]


def _end(process: "subprocess.Popen[bytes]") -> None:
    """Ends a process and those that it started, as the workers of a compiler, which can outlive it."""
    with contextlib.suppress(ProcessLookupError, PermissionError):  # none is left, or only ones that have ended
        if hasattr(os, "killpg"):
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
    process.wait()


def _binding(settings: Data) -> Data:
    return {name: value for name, value in settings.items() if name not in ("jobs", "cells")}


def _shown(settings: Data) -> str:
    return ", ".join(f"{name} {value}" for name, value in settings.items())


def parts_of(names: Sequence[str], limit: str | None) -> dict[str, float]:
    """Parts and their limits in seconds, of a text such as ``60`` for each or ``cost=120,tests=60`` for some.

    Raises:
        HeadEditError: a part is not known, or a limit is no number of seconds.
    """
    limits = dict(LIMITS)
    for entry in (limit or "").split(","):
        name, equals, seconds = entry.rpartition("=")
        if not entry.strip():
            continue
        if (equals and name.strip() not in LIMITS) or not _is_seconds(seconds):
            raise HeadEditError(
                f"--limit: found '{limit}', expected seconds for each part, such as 60, or for some, such as "
                f"cost=120,tests=60; parts are {', '.join(LIMITS)}."
            )
        for part in [name.strip()] if equals else list(LIMITS):
            limits[part] = float(seconds)
    for name in names:
        if name not in LIMITS:
            raise HeadEditError(f"--parts: found '{name}', expected some of {', '.join(LIMITS)}.")
    return {name: limits[name] for name in names}


def _is_seconds(text: str) -> bool:
    try:
        return 0 < float(text) < float("inf")
    except ValueError:
        return False
