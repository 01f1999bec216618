"""What operators, methods and filters of a template can blow up, checked before they are called."""

import re
from collections.abc import Callable, Iterator, Mapping
from types import GeneratorType
from typing import Any

from headedit.io.budget import MOST_BITS, TooMuchWork, check_number, current

Arguments = tuple[Any, ...]
TEXTS = (str, bytes)
"""The types of text, which methods could blow up."""

SIZED = (str, bytes, list, tuple, dict, range, set, frozenset)
"""The types whose length is known."""

_LONGEST_URLIZED = 20_000
_WIDE = re.compile(r"\d{6,}")
_NESTED_WIDTH = re.compile(r"\{[^{}]*\{")


def counted(value: Any) -> Any:
    """A result of a filter, charged; a generator is charged item by item, as they are taken."""
    if isinstance(value, GeneratorType):
        return _counted(value)
    current().spend_on(value)
    return value


def _counted(values: Iterator[Any]) -> Iterator[Any]:
    budget = current()
    for value in values:
        budget.spend(1)
        yield value


def formatted(text: str, function: Callable[..., str]) -> Callable[..., str]:
    """``text.format`` or ``text.format_map``, with its widths and repetitions checked first."""

    def bounded(*args: Any, **kwargs: Any) -> str:
        if _NESTED_WIDTH.search(text.replace("{{", "")):
            raise TooMuchWork("the template asks for a width in braces; write it as a number")
        _check_format(text, text.count("{"), [args, kwargs])
        result = function(*args, **kwargs)
        current().spend_on(result)
        return result

    bounded.__name__ = function.__name__
    return bounded


def _check_format(text: str, places: int, values: Any) -> None:
    if _WIDE.search(text):
        raise TooMuchWork("the template asks for too wide a field")
    current().spend_on(values, places)


# Operators.


def _add(left: Any, right: Any) -> None:
    if isinstance(left, TEXTS) and isinstance(right, TEXTS):
        current().spend(1, len(left) + len(right))
    elif isinstance(left, list | tuple) and isinstance(right, list | tuple):
        current().spend(len(left) + len(right))
    else:
        current().spend(1)


def _multiply(left: Any, right: Any) -> None:
    for value, times in ((left, right), (right, left)):
        if isinstance(value, str | bytes | list | tuple) and isinstance(times, int):
            length = len(value) * max(0, times)
            current().spend(*((0, length) if isinstance(value, TEXTS) else (length, 0)))
    current().spend(1)
    if isinstance(left, int) and isinstance(right, int) and left.bit_length() + right.bit_length() > MOST_BITS:
        raise TooMuchWork("the template makes too large a number")


def _power(left: Any, right: Any) -> None:
    current().spend(1)
    if isinstance(left, int) and isinstance(right, int) and left.bit_length() * abs(right) > MOST_BITS:
        raise TooMuchWork("the template makes too large a number")


def _percent(left: Any, right: Any) -> None:
    current().spend(1)
    if isinstance(left, TEXTS):
        text = left if isinstance(left, str) else left.decode("latin-1")
        if "*" in text:
            for value in right if isinstance(right, tuple) else (right,):
                check_number(value)
        _check_format(text, text.count("%"), right)


def _plain(left: Any, right: Any) -> None:
    current().spend(1)


OPERATORS: dict[str, Callable[[Any, Any], None]] = {
    "+": _add,
    "-": _plain,
    "*": _multiply,
    "/": _plain,
    "//": _plain,
    "**": _power,
    "%": _percent,
}
"""The check of each operator."""


# Methods: each check gives the arguments to call with.


def _numbers(owner: Any, args: Arguments, kwargs: Mapping[str, Any]) -> Arguments:
    for value in (*args, *kwargs.values()):
        check_number(value)
        if isinstance(value, int):
            current().spend(1, abs(value))
    return args


def _expandtabs(owner: Any, args: Arguments, kwargs: Mapping[str, Any]) -> Arguments:
    _numbers(owner, args, kwargs)
    width = next((abs(value) for value in (*args, *kwargs.values()) if isinstance(value, int)), 8)
    current().spend(1, owner.count("\t" if isinstance(owner, str) else b"\t") * width)
    return args


def _join(owner: Any, args: Arguments, kwargs: Mapping[str, Any]) -> Arguments:
    if not args:
        return args
    values = _listed(args[0])
    current().spend_on(values)
    current().spend(1, len(owner) * _length(values))
    return (values, *args[1:])


def _replace(owner: Any, args: Arguments, kwargs: Mapping[str, Any]) -> Arguments:
    if len(args) > 1 and isinstance(args[0], type(owner)) and isinstance(args[1], type(owner)):
        current().spend(1, len(owner) + owner.count(args[0]) * len(args[1]))
    return args


def _translate(owner: Any, args: Arguments, kwargs: Mapping[str, Any]) -> Arguments:
    table = args[0] if args and isinstance(args[0], dict) else {}
    longest = max((len(value) for value in table.values() if isinstance(value, str)), default=1)
    current().spend(1, len(owner) * longest)
    return args


def _searched(owner: Any, args: Arguments, kwargs: Mapping[str, Any]) -> Arguments:
    current().spend_on(owner)
    return args


METHODS: dict[str, Callable[[Any, Arguments, Mapping[str, Any]], Arguments]] = {
    **dict.fromkeys(("center", "ljust", "rjust", "zfill", "to_bytes"), _numbers),
    **dict.fromkeys(("index", "count", "copy"), _searched),
    "expandtabs": _expandtabs,
    "join": _join,
    "replace": _replace,
    "translate": _translate,
}
"""The check of each method that could blow up what it is called on, by its name."""


# Filters: each check gives the value to filter.


def _cheap(value: Any, args: list[Any], kwargs: Mapping[str, Any]) -> Any:
    current().spend(1)
    return value


def _lazy(value: Any, args: list[Any], kwargs: Mapping[str, Any]) -> Any:
    current().spend_on([args, kwargs])
    current().spend(1 + _length(value))
    return value


def _grouped(value: Any, args: list[Any], kwargs: Mapping[str, Any]) -> Any:
    for number in (*args, *kwargs.values()):
        check_number(number)
        current().spend(1 + (abs(int(number)) if isinstance(number, int) else 0))
    current().spend(1 + _length(value))
    return value


def _whole(value: Any, args: list[Any], kwargs: Mapping[str, Any]) -> Any:
    value = _listed(value)
    current().spend_on([value, args, kwargs])
    return value


def _summed(value: Any, args: list[Any], kwargs: Mapping[str, Any]) -> Any:
    value = _whole(value, args, kwargs)
    if isinstance(value, list | tuple):
        inner = sum(_length(item) for item in value)
        current().spend(inner * len(value))
    return value


def _joined(value: Any, args: list[Any], kwargs: Mapping[str, Any]) -> Any:
    value = _whole(value, args, kwargs)
    between = next((text for text in (*args, *kwargs.values()) if isinstance(text, str)), "")
    current().spend(1, len(between) * _length(value))
    return value


def _padded(value: Any, args: list[Any], kwargs: Mapping[str, Any]) -> Any:
    """Text of which each line or character may get as much as an argument says: a number, or a text of that length."""
    current().spend_on(value)
    lines = 1 + (value.count("\n") if isinstance(value, str) else 0)
    for argument in (*args, *kwargs.values()):
        check_number(argument)
        width = len(argument) if isinstance(argument, str) else abs(int(argument)) if isinstance(argument, int) else 0
        current().spend(1, lines * width)
    return value


def _wrapped(value: Any, args: list[Any], kwargs: Mapping[str, Any]) -> Any:
    current().spend_on(value)
    between = max((len(text) for text in (*args, *kwargs.values()) if isinstance(text, str)), default=1)
    current().spend(1, between * len(str(value)))
    return value


def _replaced(value: Any, args: list[Any], kwargs: Mapping[str, Any]) -> Any:
    current().spend_on(value)
    text = str(value)
    old, new = ([*args, "", ""][i] if len(args) > i else kwargs.get(key, "") for i, key in enumerate(("old", "new")))
    current().spend(1, text.count(str(old)) * len(str(new)) if isinstance(new, str) else 0)
    return value


def _rounded(value: Any, args: list[Any], kwargs: Mapping[str, Any]) -> Any:
    for number in (*args, *kwargs.values()):
        check_number(number, 1_000)
    current().spend(1)
    return value


def _dumped(value: Any, args: list[Any], kwargs: Mapping[str, Any]) -> Any:
    for indent in (*args, *kwargs.values()):
        check_number(len(indent) if isinstance(indent, str) else indent, 16)
    current().spend_on(value)
    return value


def _printed(value: Any, args: list[Any], kwargs: Mapping[str, Any]) -> Any:
    _percent(str(value), tuple(args) if args else dict(kwargs))
    return value


def _scanned(value: Any, args: list[Any], kwargs: Mapping[str, Any]) -> Any:
    """Text that is searched again and again: the time grows with the square of its length."""
    current().spend_on([value, args, kwargs])
    length = len(value) if isinstance(value, str) else 0
    check_number(length, _LONGEST_URLIZED)
    current().spend(1, length * length // 50)
    return value


FILTERS: dict[str, Callable[[Any, list[Any], Mapping[str, Any]], Any]] = {
    **dict.fromkeys(("length", "count", "first", "last", "default", "d", "attr", "random", "safe"), _cheap),
    **dict.fromkeys(("map", "select", "reject", "selectattr", "rejectattr", "list", "items", "reverse"), _lazy),
    **dict.fromkeys(("batch", "slice"), _grouped),
    **dict.fromkeys(("sort", "unique", "groupby", "max", "min", "dictsort"), _whole),
    **dict.fromkeys(("center", "indent"), _padded),
    **dict.fromkeys(("urlize", "striptags", "pprint", "xmlattr"), _scanned),
    "sum": _summed,
    "join": _joined,
    "wordwrap": _wrapped,
    "replace": _replaced,
    "round": _rounded,
    "tojson": _dumped,
    "format": _printed,
}
"""The check of each filter that could blow up its value; of any other, the value and the arguments are charged."""


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, GeneratorType) else value


def _length(value: Any) -> int:
    return len(value) if isinstance(value, SIZED) else 1
