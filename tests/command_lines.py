"""Command lines as people write them: in the README, in help texts, in shipped files."""

import shlex
from collections.abc import Iterator
from typing import Any

import typer.main

from headedit.cli.main import app


def commands(command: Any = None, words: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    """Each command with the words that call it, ``bench scaling`` and the groups included."""
    command = typer.main.get_command(app) if command is None else command
    yield " ".join(words), command
    for name, below in getattr(command, "commands", {}).items():
        yield from commands(below, (*words, name))


def parse(line: str) -> str:
    """The words of the command that a line calls; everything is checked that is before the command begins.

    Raises:
        Exception: that command, option or value does not exist, or one that is required is missing.
    """
    called = []
    top = None
    for words, command in commands():
        top = top or command
        command.callback = lambda *, words=words, **given: called.append(words)
    given = shlex.split(line.partition(" > ")[0], comments=True)
    top.main(given[given.index("headedit") + 1 :], prog_name="headedit", standalone_mode=False)
    return called[-1]
