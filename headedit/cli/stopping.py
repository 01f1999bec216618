"""How a command ends that was stopped by Ctrl-C: one message and exit code 130."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from headedit.cli.help import HelpfulGroup
from headedit.cli.shared import tell_error

if TYPE_CHECKING:
    from headedit.training.sweep.config import PlannedRun

_SHOWN = 8


class StoppableGroup(HelpfulGroup):
    """Commands whose KeyboardInterrupt is printed with its message, where typer prints ``Aborted`` alone."""

    def invoke(self, ctx: Any) -> Any:
        """Runs a command."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as stop:
            tell_error(f"headedit: {str(stop) or 'stopped.'}")
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


def stopped_sweep_message(planned: "Sequence[PlannedRun]", output: Path, words: Sequence[str]) -> str:
    """Which runs of a stopped sweep are finished, which one was stopped, and the command that goes on.

    Args:
        planned: all runs of the sweep.
        output: the folder of the sweep.
        words: the words with which ``headedit sweep`` was called.
    """
    from headedit.training.sweep.run import run_state

    by_state: dict[str, list[str]] = {"finished": [], "stopped": [], "new": []}
    for run in planned:
        by_state[run_state(run.config)].append(run.name)
    done, begun = by_state["finished"], by_state["stopped"]
    lines = [f"stopped; {len(done)} of {len(planned)} runs are finished{_listed(done)}."]
    if begun:
        lines.append(f"begun, and continued from what was saved last: {len(begun)}{_listed(begun)}.")
    if (output / "sweep.md").is_file():
        lines.append(f"The table of those that ended is in {output / 'sweep.md'}.")
    return "\n".join([*lines, f"To continue: {shlex.join(['headedit', 'sweep', *words])}"])


def _listed(names: Sequence[str]) -> str:
    """Names in brackets, each in quotation marks, as they have commas in them."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f" ({', '.join(repr(name) for name in names[:_SHOWN])}{more})" if names else ""
