"""The record of a run that a picture is drawn of, and the losses on held-out examples in it."""

import math
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

from headedit.errors import HeadEditError
from headedit.io.describe import describe
from headedit.runs.files import RUN_FILE
from headedit.runs.record import read_record


class HeldOut(NamedTuple):
    """Losses on held-out examples, in nats per token."""

    base: float
    edited: float


def check_run(run: Any, *fields: str) -> None:
    """Raises a HeadEditError unless this has the fields of a run, such as ``history``."""
    if not all(hasattr(run, field) for field in fields):
        raise HeadEditError(
            f"Cannot draw {describe(run)}; give the run that headedit.fit returned, or the folder that it wrote."
        )


def record_of(run: Any) -> Mapping[str, Any]:
    """The record of a run, or of the run in a folder; empty where there is none, or it cannot be read."""
    if isinstance(run, str | PathLike):
        try:
            return read_record(Path(run)) if (Path(run) / RUN_FILE).is_file() else {}
        except HeadEditError:
            return {}
    record = getattr(run, "record", None)
    return record if isinstance(record, Mapping) else {}


def held_out_losses(record: Mapping[str, Any]) -> HeldOut | None:
    """What a record says of the base and the edited model; None where it says nothing."""
    found = record.get("held_out")
    if not isinstance(found, Mapping):
        return None
    losses = [found.get(key) for key in HeldOut._fields]
    known = [float(loss) for loss in losses if isinstance(loss, int | float) and math.isfinite(loss)]
    return HeldOut(*known) if len(known) == len(losses) else None
