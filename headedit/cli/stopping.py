"""How a command ends that was stopped by Ctrl-C: one message and exit code 130."""

import shlex
import sys
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperGroup


class StoppableGroup(TyperGroup):
    """Commands whose KeyboardInterrupt is printed with its message, where typer prints ``Aborted`` alone."""

    def invoke(self, ctx: Any) -> Any:
        """Runs a command."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as stop:
            print(f"headedit: {stop or 'stopped.'}", file=sys.stderr)
            raise typer.Exit(130) from None


def stopped_message(output: Path, message: str) -> str:
    """What a stopped training has saved in its folder, and how to go on.

    Args:
        output: the folder.
        message: what the training itself says of the step in which it was stopped; empty if it was not in a step.
    """
    from headedit.runs.folder import folder_state

    state = folder_state(output)
    command = f"headedit train {shlex.quote(str(output))} --resume"
    if message:
        return f"{message}\nTo continue: {command}"
    if state == "stopped":
        return f"stopped; what was saved last is in {output}.\nTo continue from there: {command}"
    if state == "finished":
        return f"stopped; the run is finished, and its edits are in {output}.\nFor what is missing: {command}"
    return "stopped before anything was saved; the same command starts again, with --resume or without."
