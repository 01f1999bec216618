"""The command ``headedit sweep``: one config trained on several tasks and seeds, and one table of the results."""

import csv
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headedit.cli.dry_run import problems_of_sweep, refuse
from headedit.cli.next_step import print_next
from headedit.cli.processes import in_all_processes
from headedit.cli.shared import console, print_files, say_plain, write_json, write_whole
from headedit.cli.stopping import stopped_sweep_message
from headedit.errors import HeadEditError
from headedit.interpret.labels import with_error
from headedit.io.tables import rich_table

if TYPE_CHECKING:
    from headedit.edits import HeadEdits
    from headedit.evaluation.tasks.task import Task
    from headedit.training.sweep.config import EvaluateConfig, PlannedRun
    from headedit.training.sweep.rows import SweepGroup, SweepRow

_REPORTS = "eval"
_AGAIN = "\nor, in as many processes as before, the command that started them."


def sweep(
    file: Annotated[
        str,
        typer.Argument(
            metavar="SWEEP",
            help="YAML file of the sweep (base, tasks, configurations, fields, seeds, output), or a name from "
            "`headedit config list`.",
        ),
    ],
    tasks: Annotated[
        list[str] | None, typer.Option("--task", help="A task of the sweep to run; may be repeated.  [default: all]")
    ] = None,
    output: Annotated[
        str | None, typer.Option("--output", "-o", help="Folder for the runs.  [default: the sweep's]")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="A field of every run's config, as for `headedit train`; may be repeated."),
    ] = None,
    no_memory_check: Annotated[
        bool, typer.Option("--no-memory-check", help="Start runs that seem to need more memory than is free.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check files and models, list all runs; train nothing.")
    ] = False,
) -> None:
    """Train a config on several tasks and seeds, and print one table of the results.

    Where there are several configurations or fields, the validation loss chooses one set of them for each task.

    Run the same command again to resume: finished runs are skipped and stopped ones continued. Ctrl-C says which are
    finished and prints that command. Started by torchrun or accelerate, each process trains whole runs, on a GPU of its
    own where there are any.

    Example: `headedit sweep sweep.yaml --set model.name=./my-model`

    Example: `headedit sweep jola-grid --task boolq --output runs/grid`
    """
    from headedit.io.strict import read_assignments
    from headedit.training.sweep.config import SweepConfig, plan_sweep
    from headedit.training.sweep.run import run_state, run_sweep

    with in_all_processes() as processes:
        config = SweepConfig.read(file, read_assignments(settings or []))
        config = replace(config if tasks is None else config.only(tasks), output=output or config.output)
        planned = plan_sweep(config)
        if dry_run:
            cells = [[run.name, str(run.folder), run_state(run.config)] for run in planned]
            console.print(rich_table(f"headedit sweep {file}", ["run", "folder", "state"], cells, left=3))
            refuse(problems_of_sweep(planned))
            print_next("sweep", *_words(file, settings, tasks, output, no_memory_check))
            return
        options: dict[str, Any] = {"say": _say, "processes": processes, "memory_check": not no_memory_check}
        measure = None if config.evaluate is None or config.evaluate.chosen else evaluated
        folder, rows, files = Path(config.output), [], []
        try:
            for rows in run_sweep(planned, measure=measure, **options):
                files = write_sweep(rows, folder)
            if config.evaluate is not None and config.evaluate.chosen:
                again = [planned[job] for job in processes.from_first(lambda: _to_evaluate(planned, rows))]
                for measured in run_sweep(again, measure=evaluated, **options):
                    found = {row.folder: row for row in measured}
                    rows = [found.get(row.folder, row) for row in rows]
                    files = write_sweep(rows, folder)
        except KeyboardInterrupt:
            if not processes.first:
                raise
            words = _words(file, settings, tasks, output, no_memory_check)
            message = stopped_sweep_message(planned, folder, words)
            raise KeyboardInterrupt(message if processes.size == 1 else message + _AGAIN) from None
        if not processes.first:
            return
        header, cells = sweep_table(rows)
        console.print(rich_table(f"headedit sweep {file}", header, cells, left=_left(rows)))
        for line in [*chosen_lines(rows), *_note(cells)]:
            _say(line)
        print_files(files)
        failed = [row for row in rows if row.error is not None]
        if failed:
            raise HeadEditError(
                f"{len(failed)} of {len(rows)} runs failed, the first, in {failed[0].folder}: {failed[0].error} "
                "The same command tries them again."
            )
        print_next("report", _best(rows))


def _words(
    file: str, settings: list[str] | None, tasks: list[str] | None, output: str | None, no_memory_check: bool
) -> list[str]:
    """The words with which the command was called, after ``headedit sweep``."""
    given = [("--set", setting) for setting in settings or []] + [("--task", task) for task in tasks or []]
    words = [file, *(word for pair in given for word in pair), *(["--output", output] if output else [])]
    return words + (["--no-memory-check"] if no_memory_check else [])


def _best(rows: "Sequence[SweepRow]") -> str:
    """The folder of the run with the lowest validation loss, or the first where none has one."""
    from headedit.training.sweep.rows import VALIDATION_LOSS

    losses = {row.folder: row.figures[VALIDATION_LOSS] for row in rows if VALIDATION_LOSS in row.figures}
    return min(losses, key=losses.__getitem__) if losses else rows[0].folder


def _to_evaluate(planned: "Sequence[PlannedRun]", rows: "Sequence[SweepRow]") -> list[int]:
    """The numbers of the runs whose fields the validation loss chose and that did not fail."""
    from headedit.training.sweep.rows import chosen

    best = [(group.task, group.fields) for group in chosen(rows)]
    done = {row.folder for row in rows if row.error is None}
    return [
        job
        for job, run in enumerate(planned)
        if str(run.folder) in done and (not best or (run.task, run.fields) in best)
    ]


def evaluated(run: "PlannedRun", handle: "Callable[[], HeadEdits]") -> dict[str, float]:
    """The main metric of each task: of the run, its base and the constant answer; saved reports are read again.

    Raises:
        HeadEditError: a saved report is of other settings than those of the sweep, or as for ``headedit.evaluate``.
    """
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
                all_processes=False,
            )
        report = json.loads(file.read_text(encoding="utf-8"))
        _check_settings(report["settings"], task, run.evaluate, file)
        name = report["metric"] if len(tasks) == 1 else f"{task.name} {report['metric']}"
        figures |= {
            name: report["score"]["value"],
            f"base {name}": report["base"]["value"],
            f"constant {name}": report["constant"]["value"],
        }
    return figures


def _check_settings(saved: dict[str, Any], task: "Task", wanted: "EvaluateConfig", file: Path) -> None:
    """Raises a HeadEditError where a saved report was made with other settings; what it lacks is not compared."""
    from headedit.evaluation.evaluate import task_settings
    from headedit.hf.names import portable_name

    place = None if wanted.data is None else portable_name(wanted.data)
    now = {**json.loads(json.dumps(task_settings(task))), "limit": wanted.limit, "data": place}
    before = {**saved["task"], **{key: saved[key] for key in ("limit", "data") if key in saved}}
    for key, value in now.items():
        if key in before and before[key] != value:
            raise HeadEditError(
                f"{file}: is the report of another evaluation: {key} was {before[key]!r}, is {value!r}. Choose another "
                f"output for the sweep, or remove {file.parent} to evaluate the run again."
            )


def write_sweep(rows: "Sequence[SweepRow]", folder: Path) -> list[Path]:
    """Writes ``sweep.json``, ``sweep.csv`` with one line per run, and ``sweep.md`` with the table."""
    from headedit.io.tables import markdown_table
    from headedit.training.sweep.rows import figure_names, sweep_record

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
    lines = [f"- {line}" for line in [*chosen_lines(rows), *_note(cells)]]
    parts = [
        markdown_table(header, cells, left=_left(rows)),
        *(["\n".join(lines)] if lines else []),
        *(["Failed:", "\n".join(failed)] if failed else []),
    ]
    write_whole(files[2], "\n\n".join(parts) + "\n")
    return files


def sweep_table(rows: "Sequence[SweepRow]") -> tuple[list[str], list[list[str]]]:
    """Header and cells of the table: one line per task and set of fields, and one for the mean over tasks.

    Numbers are means over the seeds, ± the standard deviation where they differ.
    """
    from headedit.training.sweep.rows import figure_names, grouped

    names = figure_names(rows)
    header = [*(["task"] if rows[0].task else []), *rows[0].fields, "runs", *names]
    return header, [_group_cells(group, names) for group in grouped(rows)]


def chosen_lines(rows: "Sequence[SweepRow]") -> list[str]:
    """For each task, the fields that the validation loss chooses, with their figures; empty without a choice."""
    from headedit.training.sweep.rows import SECONDS, chosen

    lines = []
    for group in chosen(rows):
        fields = ", ".join(f"{key}={value}" for key, value in group.fields.items())
        figures = ", ".join(f"{name} {spread.mean:.4g}" for name, spread in group.figures.items() if name != SECONDS)
        lines.append(f"chosen on validation{f' for {group.task}' if group.task else ''}: {fields} ({figures})")
    return lines


def _group_cells(group: "SweepGroup", names: Sequence[str]) -> list[str]:
    runs = str(group.runs) if not group.failed else f"{group.runs}, {group.failed} failed"
    shown = []
    for spread in (group.figures.get(name) for name in names):
        if spread is not None and spread.std > 0 and group.over == "seeds":
            shown.append(with_error(spread.mean, spread.std))
        else:
            shown.append("" if spread is None else f"{spread.mean:.4g}")
    return [*([group.task] if group.task else []), *map(str, group.fields.values()), runs, *shown]


def _note(cells: Sequence[Sequence[str]]) -> list[str]:
    return ["±: standard deviation over the seeds."] if any("±" in cell for row in cells for cell in row) else []


def _left(rows: "Sequence[SweepRow]") -> int:
    return bool(rows[0].task) + len(rows[0].fields)


def _say(message: str) -> None:
    say_plain(message)
