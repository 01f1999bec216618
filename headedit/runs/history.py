"""The history of a run: a JSON line per logged step. Training writes it, plots read it."""

import json
from collections.abc import Iterable
from os import PathLike
from pathlib import Path
from typing import Any

from headedit.errors import HeadEditError
from headedit.io.files import write_atomically
from headedit.io.json import parse_json
from headedit.runs.files import HISTORY_FILE

_LARGEST = 1e300
_SHOWN = {"step", "epoch", "stage", "loss", "eval_loss", "penalty", "gates", "learning_rate", "gate_learning_rate"}
_SHOWN |= {f"{name}_{vector}" for name in ("open", "lambda") for vector in ("offset", "scale")}


class History:
    """The logged rows of a run, in order, written to a file as they come.

    A training row has step, epoch, loss (plain, on the response tokens), penalty, learning rates, the λ,
    open gates, and the value of every gate, a list per site; a validation row has step, epoch and eval_loss; the
    row of the edits that the run ends with has step and kept.
    """

    def __init__(self, path: Path | None, rows: Iterable[dict[str, Any]] = ()) -> None:
        self.path = path
        self.rows = list(rows)

    def __repr__(self) -> str:
        steps = [row["step"] for row in self.rows]
        stages = list(dict.fromkeys(str(row["stage"]) for row in self.rows if "stage" in row))
        span = f", steps {steps[0]} to {steps[-1]}" if steps else ""
        return f"History({len(steps)} rows{span}{'; ' if stages else ''}{', '.join(stages)})"

    def restart(self, step: int) -> None:
        """Keeps the rows up to this step, with which a new or resumed run begins, and writes the file again."""
        self.rows = [row for row in self.rows if row["step"] <= step and "kept" not in row]
        if self.path is not None:
            write_atomically(self.path, "".join(map(_line, self.rows)).encode())

    def append(self, row: dict[str, Any]) -> None:
        """Adds a row, to the file too."""
        self.rows.append(row)
        if self.path is not None:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(_line(row))

    def column(self, key: str) -> tuple[list[float], list[Any]]:
        """Steps and values of the rows that have a key."""
        rows = [row for row in self.rows if key in row]
        return [row["step"] for row in rows], [row[key] for row in rows]

    @staticmethod
    def read(path: "str | PathLike[str]") -> "History":
        """The history in a file, or in the folder of a run.

        Raises:
            HeadEditError: there is no such file, or it is damaged.
        """
        file = Path(path)
        file = file / HISTORY_FILE if file.is_dir() else file
        try:
            lines = file.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise HeadEditError(f"{file}: there is no history of a run here ({error}).") from None
        rows = []
        for number, line in enumerate(lines, start=1):
            try:
                rows.append(parse_json(line, f"{file}, line {number}"))
            except HeadEditError:
                if number == len(lines):
                    break  # the run was killed while it wrote this row
                raise
            _check_row(rows[-1], f"{file}, line {number}")
        return History(file, rows)


def _check_row(row: Any, where: str) -> None:
    if not isinstance(row, dict) or "step" not in row:
        raise HeadEditError(f"{where}: expected an object with a step.")
    for key, value in row.items():
        right = value is None or (
            isinstance(value, str) if key == "stage" else _are_gates(value) if key == "gates" else _is_number(value)
        )
        if key in _SHOWN and (not right or (key == "step" and value is None)):
            raise HeadEditError(f"{where}: {key}: found {repr(value)[:60]}; the file is damaged.")


def _is_number(value: object) -> bool:
    return type(value) in (int, float) and abs(value) < _LARGEST  # type: ignore[arg-type]


def _are_gates(value: object) -> bool:
    return isinstance(value, list) and all(
        isinstance(site, dict) and all(isinstance(row, list) and all(map(_is_number, row)) for row in site.values())
        for site in value
    )


def _line(row: dict[str, Any]) -> str:
    return json.dumps(row) + "\n"
