"""``--json``: a command's result as one JSON value on stdout, and everything else that it prints on stderr."""

import json
import math
import sys
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from functools import wraps
from typing import Annotated, Any, ParamSpec, TextIO, TypeVar

import typer

from headedit.cli.shared import console

Json = Annotated[
    bool, typer.Option("--json", help="Print the result as JSON on stdout, and everything else on stderr.")
]

_P = ParamSpec("_P")
_R = TypeVar("_R")
_stdout: list[TextIO] = []  # where the result of each command that runs with --json goes


def takes_json(command: Callable[_P, _R]) -> Callable[_P, _R]:
    """A command with an option ``as_json``: where it is given, only what ``put_json`` is told goes to stdout."""

    @wraps(command)
    def run(*args: _P.args, **options: _P.kwargs) -> _R:
        if not options.get("as_json"):
            return command(*args, **options)
        _stdout.append(sys.stdout)
        try:
            with redirect_stdout(sys.stderr):
                return command(*args, **options)
        finally:
            _stdout.pop()

    return run


def put_json(result: Mapping[str, Any]) -> None:
    """Prints the result of a command that was called with ``--json``; otherwise, and in a quiet process, nothing.

    Numbers that are not finite, which JSON has no word for, are null.
    """
    if _stdout and not console.quiet:
        text = json.dumps(_plain(result), indent=2, ensure_ascii=False, allow_nan=False, default=str)
        print(text, file=_stdout[-1], flush=True)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, set | frozenset):
        return sorted(map(_plain, value))
    return None if isinstance(value, float) and not math.isfinite(value) else value
