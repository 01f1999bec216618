"""JSON read within bounds: a user's files, with errors that name the place, and files that may come from anyone."""

import json
import math
import re
from typing import Any

from headedit.errors import HeadEditError

_SPACE = re.compile(r"[ \t\n\r]*")
_DEEPEST = 100
_DEEPEST_OF_EDITS = 20


def parse_json(text: str, where: str) -> Any:
    """Reads JSON text.

    Args:
        text: the text.
        where: the name of the file or line, put in front of every message.

    Raises:
        HeadEditError: it is not JSON, is nested too deeply, or has a number that is too long.
    """
    try:
        found = json.loads(text)
    except json.JSONDecodeError as error:
        place, column = (
            (where, f", column {error.colno}") if "\n" not in text else (f"{where}, line {error.lineno}", "")
        )
        raise HeadEditError(f"{place}: not valid JSON ({error.msg}{column}).") from None
    except RecursionError:
        raise HeadEditError(f"{where}: the JSON is nested too deeply.") from None
    except ValueError as error:  # a whole number of thousands of digits
        raise HeadEditError(f"{where}: not valid JSON ({str(error).partition(';')[0]}).") from None
    if text.count("[") + text.count("{") > _DEEPEST and _is_deeper(found, _DEEPEST):
        raise HeadEditError(f"{where}: the JSON is nested too deeply, more than {_DEEPEST} levels.")
    return found


def items_as_text(text: str) -> list[str] | None:
    """The text of each item of a JSON list, whatever its numbers and depth; None if it is no list that can be read."""
    decoder, items = json.JSONDecoder(parse_int=len), []
    at = _after_space(text, text.find("[") + 1)
    try:
        while text[at] != "]":
            end = decoder.raw_decode(text, at)[1]
            items.append(text[at:end])
            at = _after_space(text, end)
            if text[at] == ",":
                at = _after_space(text, at + 1)
                if text[at] == "]":
                    return None
            elif text[at] != "]":
                return None
    except (ValueError, IndexError, RecursionError):
        return None
    return None if text[at + 1 :].strip() else items


def _after_space(text: str, at: int) -> int:
    found = _SPACE.match(text, at)
    return at if found is None else found.end()


def read_json(payload: bytes) -> object:
    """Strict JSON: no key twice, no NaN, infinity or number that no field can hold, not nested without end.

    Raises:
        ValueError, RecursionError: it is not; the message says why.
    """
    content = json.loads(
        payload.decode(), object_pairs_hook=_unique, parse_int=_whole, parse_float=_finite, parse_constant=_finite
    )
    if _is_deeper(content, _DEEPEST_OF_EDITS):
        raise ValueError(f"it is nested more than {_DEEPEST_OF_EDITS} levels deep")
    json.dumps(content, ensure_ascii=False).encode()  # a ValueError for half a surrogate pair, which cannot be printed
    return content


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = [key for key, _ in pairs]
    if len(set(keys)) < len(keys):
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} is given twice")
    return dict(pairs)


def _whole(text: str) -> int:
    if len(text) > 18:
        raise ValueError(f"the number {text[:18]}… is too large")
    return int(text)


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {text[:18]} is not finite")
    return value


def _is_deeper(value: Any, levels: int) -> bool:
    here = [value]
    for _ in range(levels):
        here = [
            item
            for found in here
            if isinstance(found, dict | list)
            for item in (found.values() if isinstance(found, dict) else found)
            if isinstance(item, dict | list)
        ]
        if not here:
            return False
    return True
