"""Reads training and test records from a JSON list or JSON lines, and says where a file is broken."""

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

from headedit.errors import HeadEditError
from headedit.text import to_pair


@dataclass(frozen=True)
class Records:
    """What a file held.

    Fields:
        pairs: (prompt, response) texts, in the order of the file.
        broken: a message for each record that was left out.
    """

    pairs: list[tuple[str, str]]
    broken: list[str] = field(default_factory=list)


def read_records(path: "str | PathLike[str]", *, skip_broken: bool = False) -> Records:
    """The (prompt, response) pairs of a JSON list or JSON lines file.

    Records hold ``instruction`` and ``answer`` (perhaps ``input``), or ``prompt`` and ``response``; see
    ``headedit.text.to_pair``.

    Args:
        path: the file.
        skip_broken: leave broken records out and report them, instead of stopping at the first.

    Raises:
        HeadEditError: the file cannot be read, is empty, or holds a broken record; the message has its line.
    """
    file = Path(path)
    try:
        text = file.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise HeadEditError(f"{file}: cannot be read ({error.strerror}).") from None
    except UnicodeDecodeError as error:
        raise HeadEditError(f"{file}: is not UTF-8 text (byte {error.start}).") from None
    pairs: list[tuple[str, str]] = []
    broken: list[str] = []
    rows = _rows_of_list(text, file) if text.lstrip().startswith("[") else _rows_of_lines(text, file)
    for where, row in rows:
        try:
            pairs.append(to_pair(_parsed(row, where), where))
        except HeadEditError as error:
            if not skip_broken:
                raise HeadEditError(
                    f"{error} Mend it, or skip broken records (skip_broken=True, --skip-broken)."
                ) from None
            broken.append(str(error))
    if not pairs:
        reason = f"all {len(broken)} records are broken, the first: {broken[0]}" if broken else "it holds no records"
        raise HeadEditError(f"{file}: there is nothing to use: {reason}.")
    return Records(pairs, broken)


class _Unparsed(str):
    """A line that has not been parsed yet."""


def _rows_of_lines(text: str, file: Path) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield f"{file}, line {number}", _Unparsed(line)


def _rows_of_list(text: str, file: Path) -> Iterator[tuple[str, Any]]:
    try:
        rows = json.loads(text)
    except json.JSONDecodeError as error:
        raise HeadEditError(f"{file}, line {error.lineno}: not valid JSON ({error.msg}).") from None
    except RecursionError:
        raise HeadEditError(f"{file}: the JSON is nested too deeply.") from None
    for number, row in enumerate(rows, start=1):
        yield f"{file}, record {number}", row


def _parsed(row: Any, where: str) -> Any:
    if not isinstance(row, _Unparsed):
        return row
    try:
        return json.loads(row)
    except json.JSONDecodeError as error:
        raise HeadEditError(f"{where}: not valid JSON ({error.msg}, column {error.colno}).") from None
    except RecursionError:
        raise HeadEditError(f"{where}: the JSON is nested too deeply.") from None


def sample(pairs: list[tuple[str, str]], count: int | None, seed: int) -> list[tuple[str, str]]:
    """``count`` of the pairs, drawn by the seed; all of them, in their order, where there are no more."""
    if count is None or count >= len(pairs):
        return pairs
    return random.Random(seed).sample(pairs, count)


def split(
    pairs: list[tuple[str, str]], share: float, seed: int
) -> tuple[list[tuple[str, str]], list[tuple[str, str]] | None]:
    """The pairs in two parts, shuffled by the seed: the rest, and a share held out (None for a share of 0).

    Raises:
        HeadEditError: one of the parts would be empty.
    """
    if not share:
        return pairs, None
    held_out = round(share * len(pairs))
    if not 0 < held_out < len(pairs):
        raise HeadEditError(
            f"{len(pairs)} records cannot be split into a training set and a validation share of {share}. Give "
            "more records, validation records of their own (--valid), or a share of 0 to train without."
        )
    shuffled = random.Random(seed).sample(pairs, len(pairs))
    return shuffled[held_out:], shuffled[:held_out]
