"""Writes predictions as they are made, one JSON object per line, so that a stopped evaluation can be resumed.

The first line says what is evaluated, with digests of the model and its edits. A line that was cut off is dropped, and
its example is run again.
"""

import hashlib
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from headedit.errors import HeadEditError
from headedit.io import strict
from headedit.io.json import parse_json

logger = logging.getLogger(__name__)

KIND = "headedit predictions"
EDITED, BASE = "edited", "base"
"""Names of the model with its edits, and with them switched off."""


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """The answer of one system to one example.

    Fields:
        system: ``edited``, ``base``, or ``model`` where there are no edits.
        row: index of the example.
        where: the file and line, or number, of its record.
        text: what was generated; empty where options were scored.
        prediction: the label of the option, or the first line of a free text; None where none could be parsed.
        answers: the right label, for the metric ``mc2`` all right ones; or the references.
        scores: of the options, where they were scored.
        tokens: tokens generated or scored.
        seconds: its share of the time of its batch.
    """

    system: str
    row: int
    where: str
    text: str
    prediction: str | None
    answers: list[str]
    tokens: int
    seconds: float
    scores: list[float] | None = None


def digest(parts: Iterable[Any]) -> str:
    """A hash of plain data."""
    return hashlib.sha256(json.dumps(list(parts), sort_keys=True, default=str).encode()).hexdigest()[:16]


def resume(file: Path, header: dict[str, Any], digests: Mapping[str, str]) -> list[Prediction]:
    """Reads the predictions that a file already holds; creates the file if it does not exist.

    Predictions of the same names whose digests differ, such as those of a model that was trained since, are dropped,
    and a warning says so.

    Args:
        file: the file.
        header: what is evaluated.
        digests: the keys of the header that are digests, and what each is of.

    Raises:
        HeadEditError: it holds the predictions of another evaluation, or something else.
    """
    if not file.exists() or not file.stat().st_size:
        _write_lines(file, "w", [{"kind": KIND, **header}])
        return []
    content = file.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    first, *rest = _lines(whole) or [""]
    changed = _changed(file, _parsed(file, first, 1), header, digests)
    if changed:
        logger.warning("%s: holds predictions of other %s; they are made again.", file, " and ".join(changed))
        _write_lines(file, "w", [{"kind": KIND, **header}])
        return []
    found = _built(file, rest)
    if whole != content:
        with file.open("r+b") as stream:
            stream.truncate(len(whole))
    return found


def read_predictions(file: Path) -> list[Prediction]:
    """Reads the predictions of a finished evaluation.

    Raises:
        HeadEditError: a line is not a prediction.
    """
    return _built(file, _lines(file.read_bytes())[1:])


def append(file: Path, predictions: Sequence[Prediction]) -> None:
    """Appends predictions to a file; they are written when it returns."""
    _write_lines(file, "a", map(asdict, predictions))


def _write_lines(file: Path, mode: str, rows: Iterable[dict[str, Any]]) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open(mode, encoding="utf-8") as stream:
            stream.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    except OSError as error:
        raise HeadEditError(f"{file}: cannot be written ({error.strerror}).") from None


def _lines(content: bytes) -> list[str]:
    """The lines of a file; a text in them may hold U+2028, at which ``str.splitlines`` breaks a line too."""
    return content.decode(errors="replace").split("\n")[:-1]


def _built(file: Path, lines: Sequence[str]) -> list[Prediction]:
    """The predictions in the lines after the first."""
    return [
        strict.build(Prediction, _parsed(file, line, number), f"{file}, line {number}")
        for number, line in enumerate(lines, start=2)
    ]


def _parsed(file: Path, line: str, number: int) -> Any:
    try:
        return parse_json(line, "")
    except HeadEditError:
        raise HeadEditError(f"{file}, line {number}: is not a prediction. Delete the file or give another.") from None


def _changed(file: Path, found: Any, wanted: dict[str, Any], digests: Mapping[str, str]) -> list[str]:
    """What the digests that differ are of.

    Raises:
        HeadEditError: something else differs, or edits are compared with the base in one of the two alone.
    """
    if not isinstance(found, dict) or found.get("kind") != KIND:
        raise HeadEditError(f"{file}: does not hold predictions. Give another output.")
    differing = {key: value for key, value in json.loads(json.dumps(wanted)).items() if found.get(key) != value}
    for key, value in differing.items():
        if key not in digests or (key == "edits" and None in (found.get(key), value)):
            raise HeadEditError(
                f"{file}: holds predictions of another evaluation: {key} was {found.get(key)!r}, is {value!r}. "
                "Give another output, or delete the file to begin again."
            )
    return [digests[key] for key in differing]
