"""The command ``headedit plot``: pictures of saved edits and of a run."""

from pathlib import Path
from typing import Annotated

import typer

from headedit.cli.next_step import print_next
from headedit.cli.shared import print_files


def plot(
    run: Annotated[Path, typer.Argument(help="Folder of a run, or of saved edits.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder for the pictures.  [default: RUN]")
    ] = None,
    kind: Annotated[
        str | None, typer.Option("--kind", help="Kind of site to draw, such as attention or mlp.  [default: all]")
    ] = None,
) -> None:
    """Draw the gates of saved edits, and a run's history, pruning path and selection if it has them; needs no model.

    Example: `headedit plot out`
    """
    from headedit.interpret import plots
    from headedit.io.files import check_writable
    from headedit.runs.files import (
        GATES_PLOT,
        HISTORY_FILE,
        HISTORY_PLOT,
        PATH_FILE,
        PATH_PLOT,
        RUN_FILE,
        SELECTION_PLOT,
    )
    from headedit.runs.record import read_record

    figures = {GATES_PLOT: plots.gates(run, kind=kind)}
    if (run / HISTORY_FILE).is_file():
        figures[HISTORY_PLOT] = plots.history(run)
    if (run / PATH_FILE).is_file():
        figures[PATH_PLOT] = plots.path(run)
    if (run / RUN_FILE).is_file() and read_record(run).get("selection"):
        figures[SELECTION_PLOT] = plots.selection(run, kind=kind)
    folder = check_writable(run if output is None else output)
    folder.mkdir(parents=True, exist_ok=True)
    for name, figure in figures.items():
        figure.savefig(folder / name, dpi=150)
    print_files([folder / name for name in figures])
    if (run / RUN_FILE).is_file():
        print_next("report", run)
