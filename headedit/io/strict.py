"""Builds a dataclass from plain data (YAML, JSON, keyword arguments) and refuses unknown keys.

Every fault is a ``HeadEditError`` that names the place, what was found, what was expected, and the nearest
valid name. The dataclass is the only description of the format.
"""

import contextlib
import dataclasses
import datetime
import types
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from headedit.errors import HeadEditError, suggest
from headedit.io.yaml import parse_yaml

T = TypeVar("T")


def build(cls: type[T], data: object, where: str) -> T:
    """Builds an instance of the dataclass ``cls`` from a mapping.

    Args:
        cls: a dataclass whose fields have type hints made of int, float, bool, str, None, Literal,
            list, tuple, dict, other dataclasses, and unions of these.
        data: the plain data.
        where: the name of the file or object, put in front of every message.

    Raises:
        HeadEditError: an unknown or missing key, a value of a wrong type, or a value refused by ``cls``.
    """
    if not isinstance(data, Mapping):
        raise HeadEditError(f"{where}: expected a mapping of keys to values, found {_show(data)}.")
    fields = {f.name: f for f in dataclasses.fields(cls) if f.init}  # type: ignore[arg-type]
    hints = get_type_hints(cls)
    for key in data:
        if key not in fields:
            raise HeadEditError(f"{where}: unknown key {key!r}.{suggest(key, fields)}")
    for name, field in fields.items():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and name not in data:
            raise HeadEditError(f"{where}: the key '{name}' is missing.")
    values = {key: convert(hints[key], value, f"{where}: {key}") for key, value in data.items()}
    try:
        return cls(**values)
    except HeadEditError as error:
        raise HeadEditError(f"{where}: {error}") from None


def check(instance: object) -> None:
    """Checks the fields of a dataclass made in Python against its type hints, for use in ``__post_init__``."""
    hints = get_type_hints(type(instance))
    for field in dataclasses.fields(instance):  # type: ignore[arg-type]
        value = getattr(instance, field.name)
        object.__setattr__(instance, field.name, convert(hints[field.name], value, field.name))


def convert(hint: Any, value: object, where: str) -> Any:
    """Converts a value to the type that a hint names; a HeadEditError says why it cannot be."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return _convert_union(arguments, value, where)
    if origin is Literal:
        if value not in arguments or isinstance(value, bool) != any(
            a is value for a in arguments if isinstance(a, bool)
        ):
            hint_text = suggest(value, map(str, arguments), elsewhere=True)
            raise HeadEditError(f"{where}: found {_show(value)}, expected {_describe(hint)}.{hint_text}")
        return value
    if dataclasses.is_dataclass(hint):
        return value if isinstance(value, hint) else build(hint, value, where)  # type: ignore[arg-type]
    if origin in (list, tuple) and isinstance(value, list | tuple):
        variadic = origin is list or arguments[-1] is Ellipsis
        if not variadic and len(value) != len(arguments):
            raise HeadEditError(f"{where}: found {_show(value)}, expected {len(arguments)} values.")
        kinds = [arguments[0]] * len(value) if variadic else arguments
        items = zip(kinds, value, strict=True)
        return origin(convert(kind, item, f"{where}[{i}]") for i, (kind, item) in enumerate(items))
    if origin is dict and isinstance(value, Mapping):
        for key in value:
            convert(arguments[0], key, f"{where}: the key {key!r}")
        return {key: convert(arguments[1], item, f"{where}: {key}") for key, item in value.items()}
    if hint is str and isinstance(value, datetime.date):
        return value.isoformat()  # YAML reads 2026-03-01 as a date
    if _is_a(hint, value):
        return float(value) if hint is float else value  # type: ignore[arg-type]
    raise HeadEditError(f"{where}: found {_show(value)}, expected {_describe(hint)}.")


def put(data: dict[str, Any], path: Sequence[str], value: Any) -> None:
    """Puts a value under a path of keys, through sections that are copied, or made where there are none."""
    *sections, last = path
    for name in sections:
        inner = data.get(name)
        data[name] = inner = dict(inner) if isinstance(inner, Mapping) else {}
        data = inner
    data[last] = value


def read_assignments(settings: Iterable[str]) -> dict[str, Any]:
    """Reads ``["epochs=5", "vector_lr=1e-2"]`` as keys and values, the values as YAML.

    Raises:
        HeadEditError: a setting has no ``=`` or a value that cannot be read.
    """
    assigned: dict[str, Any] = {}
    for setting in settings:
        key, sign, text = setting.partition("=")
        if not sign:
            raise HeadEditError(f"{setting}: expected name=value, such as epochs=5.")
        value = parse_yaml(text, f"{setting[:60]}: cannot be read as a value")
        if isinstance(value, str):
            with contextlib.suppress(ValueError):
                value = float(value)  # YAML reads 1e-3 as a text
        assigned[key.strip()] = value
    return assigned


def _convert_union(options: tuple[Any, ...], value: object, where: str) -> Any:
    for option in options:
        try:
            return convert(option, value, where)
        except HeadEditError:
            if _same_shape(option, value):
                raise  # the value is of this option's shape, so its message is the useful one
    expected = " or ".join(_describe(option) for option in options)
    raise HeadEditError(f"{where}: found {_show(value)}, expected {expected}.")


def _same_shape(option: Any, value: object) -> bool:
    if isinstance(value, Mapping):
        return dataclasses.is_dataclass(option) or get_origin(option) is dict
    return isinstance(value, list | tuple) and get_origin(option) in (list, tuple)


def _is_a(hint: Any, value: object) -> bool:
    if hint is Any:
        return True
    if hint in (int, float) and isinstance(value, bool):
        return False
    if hint is float:
        return isinstance(value, int | float)
    return isinstance(hint, type) and isinstance(value, hint)


def _describe(hint: Any) -> str:
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is type(None):
        return "nothing"
    if origin in (Union, types.UnionType):
        return " or ".join(_describe(a) for a in arguments)
    if origin is Literal:
        return "one of " + ", ".join(map(str, arguments))
    if origin in (list, tuple):
        return "a list of " + _describe(arguments[0])
    if origin is dict or dataclasses.is_dataclass(hint):
        return "a mapping"
    return {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}.get(hint, str(hint))


def _show(value: object) -> str:
    text = repr(value)
    return f"{text if len(text) <= 60 else text[:57] + '...'} ({type(value).__name__})"
