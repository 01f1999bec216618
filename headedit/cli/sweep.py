"""The command ``headedit sweep``: one config trained on several tasks and seeds, and one table of the results."""

import csv
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from headedit.cli.shared import console, print_files, write_json, write_whole
from headedit.cli.stopping import stopped_sweep_message
from headedit.errors import HeadEditError
from headedit.io.tables import rich_table

if TYPE_CHECKING:
    from headedit.edits import HeadEdits
    from headedit.training.sweep.config import PlannedRun
    from headedit.training.sweep.run import SweepGroup, SweepRow

_REPORTS = "eval"


def sweep(
    file: Annotated[
        Path, typer.Argument(metavar="SWEEP", help="YAML file of the sweep: base, tasks, seeds, fields, output.")
    ],
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="A field of every run's config, as for `headedit train`; may be repeated."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check and list all runs; train nothing.")] = False,
) -> None:
    """Train a config on several tasks and seeds, and print one table of the results.

    Run the same command again to resume: finished runs are skipped and stopped ones continued. Ctrl-C says which are
    finished and prints that command.

    Example: `headedit sweep sweep.yaml --set model.name=./my-model`
    """
    from headedit.io.strict import read_assignments
    from headedit.training.sweep.config import SweepConfig, plan_sweep
    from headedit.training.sweep.run import run_state, run_sweep

    config = SweepConfig.read(file, read_assignments(settings or []))
    planned = plan_sweep(config)
    if dry_run:
        cells = [[run.name, str(run.folder), run_state(run.config)] for run in planned]
        console.print(rich_table(f"headedit sweep {file}", ["run", "folder", "state"], cells, left=3))
        return
    measure = None if config.evaluate is None else evaluated
    folder, rows, files = Path(config.output), [], []
    try:
        for rows in run_sweep(planned, measure=measure, say=_say):
            files = write_sweep(rows, folder)
    except KeyboardInterrupt:
        words = [str(file), *(word for setting in settings or [] for word in ("--set", setting))]
        raise KeyboardInterrupt(stopped_sweep_message(planned, folder, words)) from None
    header, cells = sweep_table(rows)
    console.print(rich_table(f"headedit sweep {file}", header, cells, left=_left(rows)))
    print_files(files)
    failed = [row for row in rows if row.error is not None]
    if failed:
        raise HeadEditError(
            f"{len(failed)} of {len(rows)} runs failed, the first, in {failed[0].folder}: {failed[0].error} "
            "The same command tries them again."
        )


def evaluated(run: "PlannedRun", handle: "Callable[[], HeadEdits]") -> dict[str, float]:
    """The main metric of each task: of the run, its base and the constant answer; saved reports are read again."""
    from headedit.evaluation import evaluate
    from headedit.evaluation.tasks.task_files import find_tasks

    assert run.evaluate is not None
    figures: dict[str, float] = {}
    tasks = find_tasks(run.evaluate.tasks, **run.evaluate.changes)
    for task in tasks:
        file = run.folder / _REPORTS / f"{task.name.replace(':', '-').replace(' ', '_')}.json"
        if not file.is_file():
            edits = handle()
            evaluate(
                edits.model,
                task,
                edits=edits,
                tokenizer=run.config.model.load_tokenizer(),
                data=run.evaluate.data,
                limit=run.evaluate.limit,
                batch_size=run.evaluate.batch_size,
                output=file,
            )
        report = json.loads(file.read_text(encoding="utf-8"))
        name = report["metric"] if len(tasks) == 1 else f"{task.name} {report['metric']}"
        figures |= {
            name: report["score"]["value"],
            f"base {name}": report["base"]["value"],
            f"constant {name}": report["constant"]["value"],
        }
    return figures


def write_sweep(rows: "Sequence[SweepRow]", folder: Path) -> list[Path]:
    """Writes ``sweep.json``, ``sweep.csv`` with one line per run, and ``sweep.md`` with the table."""
    from headedit.io.tables import markdown_table
    from headedit.training.sweep.run import figure_names, sweep_record

    files = [folder / f"sweep.{ending}" for ending in ("json", "csv", "md")]
    write_json(files[0], sweep_record(rows))
    names, text = figure_names(rows), io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["task", *rows[0].fields, "seed", *names, "folder", "error"])
    for row in rows:
        figures = [row.figures.get(name) for name in names]
        writer.writerow([row.task, *row.fields.values(), row.seed, *figures, row.folder, row.error])
    write_whole(files[1], text.getvalue())
    header, cells = sweep_table(rows)
    failed = [f"- {row.folder}: {row.error}" for row in rows if row.error is not None]
    parts = [markdown_table(header, cells, left=_left(rows)), *(["Failed:", "\n".join(failed)] if failed else [])]
    write_whole(files[2], "\n\n".join(parts) + "\n")
    return files


def sweep_table(rows: "Sequence[SweepRow]") -> tuple[list[str], list[list[str]]]:
    """Header and cells of the table: one line per task and set of fields, and one for the mean over tasks.

    Numbers are means over the seeds, ± the standard deviation where they differ.
    """
    from headedit.training.sweep.run import figure_names, grouped

    names = figure_names(rows)
    header = [*(["task"] if rows[0].task else []), *rows[0].fields, "runs", *names]
    return header, [_group_cells(group, names) for group in grouped(rows)]


def _group_cells(group: "SweepGroup", names: Sequence[str]) -> list[str]:
    runs = str(group.runs) if not group.failed else f"{group.runs}, {group.failed} failed"
    shown = []
    for spread in (group.figures.get(name) for name in names):
        mean = "" if spread is None else f"{spread.mean:.4g}"
        varies = spread is not None and spread.std > 0 and group.over == "seeds"
        shown.append(f"{mean} ± {spread.std:.2g}" if spread is not None and varies else mean)
    return [*([group.task] if group.task else []), *map(str, group.fields.values()), runs, *shown]


def _left(rows: "Sequence[SweepRow]") -> int:
    return bool(rows[0].task) + len(rows[0].fields)


def _say(message: str) -> None:
    console.print(message, markup=False, soft_wrap=True)
