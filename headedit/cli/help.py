"""Help where typer's tables would cut the names of options: nothing is cut, and an example is copied as one command."""

import re
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import typer
from typer.core import TyperCommand, TyperGroup

from headedit.cli.shared import HELP_MARKUP, console
from headedit.io.wrapping import wrap, wrap_command

_Function = TypeVar("_Function", bound=Callable[..., Any])

_EXAMPLE = re.compile(r"Example: `(.+)`")
_WORDS = {"str": "text", "int": "number", "float": "number", "Path": "path"}
_PANEL = "Commands"


class _Helpful:
    """A command or group whose help is in lines of the terminal's width."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Writes the help."""
        if HELP_MARKUP is None:
            formatter.write(plain_help(self, ctx, console.width))
        else:
            super().format_help(ctx, formatter)  # type: ignore[misc]


class HelpfulCommand(_Helpful, TyperCommand):
    """A command with such help."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """What follows the command in its usage line."""
        return [_metavar(piece) for piece in super().collect_usage_pieces(ctx)]


class HelpfulGroup(_Helpful, TyperGroup):
    """A group of commands with such help."""


class Commands(typer.Typer):
    """Commands, all with such help."""

    def __init__(self, *, cls: type[TyperGroup] = HelpfulGroup, **options: Any) -> None:
        super().__init__(cls=cls, rich_markup_mode=HELP_MARKUP, **options)

    def command(
        self, name: str | None = None, *, cls: type[TyperCommand] | None = None, **options: Any
    ) -> Callable[[_Function], _Function]:
        """Adds a command."""
        return super().command(name, cls=cls or HelpfulCommand, **options)


def plain_help(command: Any, context: Any, width: int) -> str:
    """The help of a command, or of a group with a line for each of its commands.

    Args:
        command: the command, of typer.
        context: its context, which knows the words that call it.
        width: cells of a line.
    """
    usage = " ".join([context.command_path, *command.collect_usage_pieces(context)])
    lines = [wrap(f"Usage: {usage}", width, indent="    "), *_description(command.help or "", width)]
    for title, kind in (("Arguments", "argument"), ("Options", "option")):
        found = [one for one in command.get_params(context) if one.param_type_name == kind and not _hidden(one)]
        if found:
            lines += ["", f"{title}:", *(line for one in found for line in _parameter(one, context, width))]
    return "\n".join([*lines, *_commands(command, width)]) + "\n"


def _description(text: str, width: int) -> Iterator[str]:
    for paragraph in text.strip().split("\n\n"):
        words = " ".join(paragraph.split())
        example = _EXAMPLE.fullmatch(words)
        yield ""
        yield wrap(words, width) if example is None else wrap_command("Example: ", example.group(1), width)


def _parameter(parameter: Any, context: Any, width: int) -> Iterator[str]:
    """The names of an option or argument, with what it takes, and below what it is."""
    names, text = parameter.get_help_record(context) or (parameter.name, parameter.help or "")
    if parameter.param_type_name == "argument":
        first, _, rest = names.partition(" <")
        names = f"{first.upper()} <{rest}" if rest else first.upper()
    yield wrap(f"  {_metavar(names)}", width, indent="    ")
    if text:
        yield wrap(f"      {text}", width, indent="      ")


def _commands(command: Any, width: int) -> Iterator[str]:
    """The commands of a group below the titles of their panels, each with its first sentence."""
    panels: dict[str, list[Any]] = {}
    for name, below in getattr(command, "commands", {}).items():
        panel = getattr(below, "rich_help_panel", None)
        panels.setdefault(panel if isinstance(panel, str) else _PANEL, []).append((name, below))
    for title, found in panels.items():
        yield from ("", f"{title}:")
        longest = max(len(name) for name, _ in found)
        for name, below in found:
            text = " ".join((below.help or "").strip().split("\n\n")[0].split())
            first, *rest = wrap(text, width - longest - 4).split("\n")
            yield "\n".join([f"  {name:<{longest}}  {first}", *(" " * (longest + 4) + line for line in rest)])


def _metavar(text: str) -> str:
    """What an option takes in plain words, such as ``<number>``."""
    text = re.sub(r"\{([^{}]+)\}", lambda found: found.group(1).upper(), text)
    text = re.sub(r"<list\[(\w+)\]>", r"<\1>", text).replace(" range>", ">")
    return re.sub(r"<(\w+)>", lambda found: f"<{_WORDS.get(found.group(1), found.group(1))}>", text)


def _hidden(parameter: Any) -> bool:
    return bool(getattr(parameter, "hidden", False))
