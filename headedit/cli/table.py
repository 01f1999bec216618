"""The command ``headedit table``: evaluations side by side, with published results if wanted."""

from pathlib import Path
from typing import Annotated

import typer

from headedit.cli.next_step import say_next
from headedit.cli.shared import console, print_files, write_json, write_whole
from headedit.io.tables import rich_table


def table(
    runs: Annotated[
        list[Path] | None, typer.Argument(metavar="RUN", help="Reports of `headedit eval`, or folders of them.")
    ] = None,
    published: Annotated[
        bool, typer.Option("--published", help="Also show results from papers, marked as published.")
    ] = False,
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="Only the published results of this model.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File to write: JSON if it ends in .json, otherwise Markdown.")
    ] = None,
) -> None:
    """Compare evaluations with each other and with published results.

    Example: `headedit table reports/jola reports/localise --published --model Llama-3.1-8B-Instruct`
    """
    from headedit.evaluation.reports.comparison import LEFT, compare_runs
    from headedit.evaluation.reports.saved_runs import read_run

    comparison = compare_runs([read_run(run) for run in runs or []], with_published=published, model=model)
    tables = [table for table in comparison.tables() if any(any(row[LEFT:]) for row in table[2])]
    for title, header, cells in tables:
        console.print(rich_table(title, header, cells, left=LEFT))
    for note in comparison.notes:
        console.print(note, markup=False)
    if output is not None:
        if output.suffix == ".json":
            write_json(output, comparison.to_dict())
        else:
            write_whole(output, comparison.markdown())
        print_files([output])
    else:
        say_next("the same command with --output FILE, which writes the tables as Markdown or JSON")
