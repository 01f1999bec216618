"""The spec format as a JSON schema, made from the dataclasses, so that an editor can complete a spec file."""

import dataclasses
import types
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from headedit.specs.schema import Spec

_SIMPLE = {int: "integer", float: "number", str: "string", bool: "boolean", type(None): "null"}


def json_schema() -> dict[str, Any]:
    """A JSON schema (draft 2020-12) of a spec file."""
    definitions: dict[str, Any] = {}
    reference = _of(Spec, definitions)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "headedit architecture spec",
        **reference,
        "$defs": definitions,
    }


def _of(hint: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return {"anyOf": [_of(argument, definitions) for argument in arguments]}
    if origin is Literal:
        return {"enum": list(arguments)}
    if origin is list:
        return {"type": "array", "items": _of(arguments[0], definitions)}
    if origin is dict:
        keys = _of(arguments[0], definitions)
        names = {"propertyNames": keys} if "enum" in keys else {}
        return {"type": "object", "additionalProperties": _of(arguments[1], definitions), **names}
    if dataclasses.is_dataclass(hint):
        return _of_dataclass(hint, definitions)
    return {"type": _SIMPLE[hint]}


def _of_dataclass(cls: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    if cls.__name__ not in definitions:
        definitions[cls.__name__] = {}  # so that a class which holds itself ends
        fields = [field for field in dataclasses.fields(cls) if field.init]
        hints = get_type_hints(cls)
        definitions[cls.__name__] = {
            "type": "object",
            "description": (cls.__doc__ or "").split("\n\n")[0],
            "properties": {field.name: _of(hints[field.name], definitions) for field in fields},
            "required": [f.name for f in fields if f.default is f.default_factory is dataclasses.MISSING],
            "additionalProperties": False,
        }
    return {"$ref": f"#/$defs/{cls.__name__}"}
