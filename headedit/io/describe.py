"""Says in a few words what a value is, or which names there are, for messages."""

from collections.abc import Sequence
from os import PathLike
from typing import Any

_LONGEST = 60
_SHOWN = 3


def describe(value: Any) -> str:
    """What a value is, such as ``the text 'gpt2'``, ``a list of 3`` or ``an array of shape (2, 4)``."""
    if value is None or isinstance(value, bool | int | float | complex):
        return _short(repr(value))
    if isinstance(value, str):
        return f"the text {_short(repr(value))}"
    if isinstance(value, PathLike):
        return f"the path {_short(repr(str(value)))}"
    if isinstance(value, type):
        return f"the class {value.__name__}"
    name = type(value).__name__
    shape = getattr(value, "shape", None)
    if isinstance(shape, tuple) and hasattr(value, "dtype"):
        return f"{with_article(name)} of shape {tuple(shape)}" if len(shape) else f"{value} ({name})"
    if isinstance(value, list | tuple | dict | set | frozenset):
        return f"{with_article(name)} of {len(value)}"
    return with_article(name)


def first_names(names: Sequence[str]) -> str:
    """The first three names, and how many more there are."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def with_article(noun: str) -> str:
    """``a list``, ``an EditConfig``."""
    return f"{'an' if noun[:1].lower() in 'aeio' else 'a'} {noun}"


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."
