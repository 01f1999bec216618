"""Reads JSON that may come from anyone: nothing ambiguous, endless or unprintable is taken."""

import json
import math
from typing import Any

_DEEPEST = 20


def read_json(payload: bytes) -> object:
    """Strict JSON: no key twice, no NaN, infinity or number that no field can hold, not nested without end.

    Raises:
        ValueError, RecursionError: it is not; the message says why.
    """
    content = json.loads(
        payload.decode(), object_pairs_hook=_unique, parse_int=_whole, parse_float=_finite, parse_constant=_finite
    )
    if _is_deeper(content, _DEEPEST):
        raise ValueError(f"it is nested more than {_DEEPEST} levels deep")
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


def _is_deeper(content: object, levels: int) -> bool:
    inner = content.values() if isinstance(content, dict) else content if isinstance(content, list) else ()
    return levels < 0 or any(_is_deeper(item, levels - 1) for item in inner)
