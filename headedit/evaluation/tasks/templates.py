"""Renders prompts from Jinja templates over the fields of a record, in a sandbox; missing fields are errors."""

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from jinja2 import StrictUndefined, Template, TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from headedit.errors import HeadEditError

_ENVIRONMENT = ImmutableSandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=True)


@lru_cache(maxsize=64)
def compiled(template: str) -> Template:
    """The template, ready to be rendered; raises jinja2's ``TemplateSyntaxError``."""
    return _ENVIRONMENT.from_string(template)


def render(template: str, fields: Mapping[str, Any], where: str) -> str:
    """Renders a template for one record.

    Raises:
        HeadEditError: the record lacks a field that the template names; ``where`` names the record.
    """
    try:
        return compiled(template).render(fields)
    except (TemplateError, TypeError, ValueError) as error:
        found = ", ".join(map(str, fields))
        raise HeadEditError(f"{where}: the prompt cannot be made: {error}. Fields of the record: {found}.") from None
