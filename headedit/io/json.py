"""JSON read within bounds: every fault, one of depth too, is a HeadEditError that names its place."""

import json
from typing import Any

from headedit.errors import HeadEditError

_DEEPEST = 100


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
