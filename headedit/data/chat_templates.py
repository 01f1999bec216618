"""Renders the chat templates of tokenizers within bounds, with the names that transformers gives them.

A tokenizer's template comes from wherever the model came from. It is rendered as ``apply_chat_template`` does, with the
same filters, functions and ``{% generation %}`` marks, in the environment of ``headedit.io.sandbox``.
"""

import json
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from functools import lru_cache
from typing import Any

from jinja2 import Template, TemplateError, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.utils import Namespace

from headedit.data.clock import moment
from headedit.data.formats import Message
from headedit.data.tokens import Span
from headedit.io.budget import spending
from headedit.io.sandbox import BoundedEnvironment


class _Marks:
    """The text of a conversation as far as it is rendered, and where its marks are, in characters."""

    def __init__(self) -> None:
        self.length = 0
        self.spans: list[Span] = []


_marks: ContextVar[_Marks | None] = ContextVar("marks of a chat template", default=None)


class _Generation(Extension):
    """``{% generation %}`` and ``{% endgeneration %}``, around what the assistant says."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_marked"), [], [], body).set_lineno(line)

    def _marked(self, caller: Callable[[], str]) -> str:
        text, marks = caller(), _marks.get()
        if marks is not None:
            marks.spans.append((marks.length, marks.length + len(text)))
        return text


class _Dict:
    """``dict`` of a template, which leads to no class of Python."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


class _Namespace(Namespace):
    """``namespace`` of a template, without names that begin with an underscore."""

    def __init__(*args: Any, **kwargs: Any) -> None:  # so that ``self`` can be a name, too
        values = dict(*args[1:], **kwargs)
        for name in values:
            _check_name(name)
        Namespace.__init__(args[0], values)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"A namespace of a chat template has no name that begins with an underscore: {name!r}.")


def _raise_exception(message: str) -> None:
    raise TemplateError(message)


def _strftime_now(format: str) -> str:
    return moment().strftime(format)


def _to_json(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _environment() -> BoundedEnvironment:
    made = BoundedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
    made.add_filter("tojson", _to_json)
    made.globals |= {
        "raise_exception": _raise_exception,
        "strftime_now": _strftime_now,
        "dict": _Dict(),
        "namespace": _Namespace,
    }
    return made


_ENVIRONMENT = _environment()


@lru_cache(maxsize=16)
def _compiled(template: str) -> Template:
    return _ENVIRONMENT.template(template, "The tokenizer's chat template")


def render_chat(
    template: str, messages: list[Message], *, add_generation_prompt: bool = False, **special_tokens: Any
) -> tuple[str, list[Span]]:
    """Renders a conversation.

    Args:
        template: the text of a chat template.
        messages: the conversation.
        add_generation_prompt: ask for the header of an answer.
        special_tokens: such as ``bos_token``, by the names that a tokenizer gives them.

    Returns:
        The text, and where the template marks what the assistant says, in characters.

    Raises:
        HeadEditError: the template is too long or too deeply nested.
        Exception: whatever Jinja, the template and its filters raise, also where it asks for too much.
    """
    compiled, marks = _compiled(template), _Marks()
    given = [dict(message) for message in messages]
    fields = {"messages": given, "tools": None, "documents": None, "add_generation_prompt": add_generation_prompt}
    before = _marks.set(marks)
    try:
        with spending([given, template]):
            return "".join(_followed(compiled.generate(**fields, **special_tokens), marks)), marks.spans
    finally:
        _marks.reset(before)


def _followed(parts: Iterator[str], marks: _Marks) -> Iterator[str]:
    for part in parts:
        marks.length += len(part)
        yield part
