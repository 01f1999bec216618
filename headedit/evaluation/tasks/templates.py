"""Renders prompts from Jinja templates over the fields of a record, within bounds; missing fields are errors."""

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from jinja2 import StrictUndefined, Template

from headedit.errors import HeadEditError
from headedit.io.budget import spending
from headedit.io.sandbox import BoundedEnvironment

_ENVIRONMENT = BoundedEnvironment(undefined=StrictUndefined, keep_trailing_newline=True)
_SHOWN = 500  # characters of a message


@lru_cache(maxsize=64)
def compiled(template: str) -> Template:
    """The template, ready to be rendered.

    Raises:
        HeadEditError: it is too long or too deeply nested.
        jinja2.TemplateSyntaxError: it is not a template.
    """
    return _ENVIRONMENT.template(template, "The template")


def render(template: str, fields: Mapping[str, Any], where: str) -> str:
    """Renders a template for one record.

    Raises:
        HeadEditError: the record lacks a field that the template names, or the template asks for too much time or text;
            ``where`` names the record.
    """
    try:
        with spending([fields, template]):
            return compiled(template).render(fields)
    except Exception as error:  # Jinja's own, and whatever filters and operators raise
        found = ", ".join(map(str, fields))
        raise HeadEditError(
            f"{where}: the prompt cannot be made: {str(error)[:_SHOWN] or type(error).__name__}. "
            f"Fields of the record: {found[:_SHOWN]}."
        ) from None
