"""The one exception that headedit raises for a mistake its user can mend."""

import difflib
from collections.abc import Iterable

_LISTED = 20


class HeadEditError(Exception):
    """Something is wrong that the user can put right; the message says what, where, and what to do."""


def suggest(name: object, options: Iterable[str]) -> str:
    """`` Did you mean 'x'?`` for the closest option, else the list of what is possible, where it is short."""
    options = sorted(options)
    close = difflib.get_close_matches(str(name), options, n=1)
    if close:
        return f" Did you mean '{close[0]}'?"
    return f" Possible: {', '.join(options)}." if 0 < len(options) <= _LISTED else ""
