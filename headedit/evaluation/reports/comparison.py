"""Compares runs with each other and with published figures."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from headedit.errors import HeadEditError, suggest
from headedit.evaluation.reports.published import COLUMNS, Column, published
from headedit.evaluation.reports.report import shown
from headedit.evaluation.reports.saved_runs import SavedRun
from headedit.evaluation.scores.statistics import wilson
from headedit.evaluation.tasks.task import ACCURACY
from headedit.io.tables import markdown_table

Cells = list[list[str]]
Part = tuple[float, tuple[float, float] | None]
"""A figure that a mean includes, and its 95 % interval."""

LEFT = 3
"""Number of columns that hold words, which are aligned left."""


@dataclass(frozen=True, kw_only=True)
class Figure:
    """The mean of a metric over tasks.

    Fields:
        value: in per cent, or on the metric's scale of 0 to 100.
        interval: its 95 % interval; None where it is not known.
        missing: what it is of where a published figure is of more, such as ``3 of 8 tasks``.
    """

    value: float
    interval: tuple[float, float] | None = None
    missing: str | None = None

    def __str__(self) -> str:
        """``70.50 [69.2, 71.7] (3 of 8 tasks)``."""
        interval = "" if self.interval is None else " [{:.1f}, {:.1f}]".format(*self.interval)
        return f"{self.value:.2f}{interval}" + ("" if self.missing is None else f" ({self.missing})")


@dataclass(frozen=True, kw_only=True)
class Line:
    """The figures of one method on one model.

    Fields:
        origin: ``published`` in a paper, or ``measured`` here.
        model: the model's name.
        method: the paper's name for it, or the run's.
        figures: the available ones, by the names of ``COLUMNS``.
        source: the paper; None where it was measured.
    """

    origin: Literal["published", "measured"]
    model: str
    method: str
    figures: dict[str, Figure]
    source: str | None = None


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Lines of averages, the runs task by task, and what a reader should know.

    Fields:
        lines: published ones first.
        tasks: header and cells of the table by task; the header alone where no run was given.
        notes: sources and cautions.
    """

    lines: list[Line]
    tasks: tuple[list[str], Cells]
    notes: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """The lines and notes as plain data."""
        return {"lines": [asdict(line) for line in self.lines], "notes": self.notes}

    def tables(self) -> list[tuple[str, list[str], Cells]]:
        """Title, header and cells of each table."""
        header = ["origin", "model", "method", *(column.title for column in COLUMNS.values())]
        cells = [
            [line.origin, line.model, line.method, *(str(line.figures.get(name, "")) for name in COLUMNS)]
            for line in self.lines
        ]
        found = [("Averages", header, cells)]
        return [*found, ("By task", *self.tasks)] if self.tasks[1] else found

    def markdown(self) -> str:
        """The tables and notes."""
        parts = [
            part
            for title, header, cells in self.tables()
            for part in (f"## {title}", markdown_table(header, cells, left=LEFT))
        ]
        return "\n\n".join([*parts, *(f"- {note}" for note in self.notes)]) + "\n"


def compare_runs(runs: Sequence[SavedRun], *, with_published: bool = True, model: str | None = None) -> Comparison:
    """Compares runs with each other and with published figures.

    A run gives the line of its edited model, of its base with the edits off, and of the constant answer. Averages are
    over the tasks or domains it has, and say so where a published figure has more.

    Args:
        runs: evaluations, as ``read_run`` reads them.
        with_published: also the published lines.
        model: only published lines of this model.

    Raises:
        HeadEditError: there is nothing to show, two runs have one name, or no published figures are of this model.
    """
    names = [run.name for run in runs]
    for name in names:
        if names.count(name) > 1:
            raise HeadEditError(
                f"Two runs are named '{name}'. Rename one of the folders, so that they can be distinguished."
            )
    if not runs and not with_published:
        raise HeadEditError("There is nothing to compare: name runs, ask for the published figures, or both.")
    lines, notes = list(_published_lines(model)) if with_published else [], []
    if with_published:
        notes += [
            f"Published: {published().sources[key]}." for key in dict.fromkeys(line.source for line in lines) if key
        ]
        notes += [f"Published figures: {published().setting}.", *published().cautions]
    if runs:
        notes.append(
            "Measured: in brackets the 95 % interval; 'constant answer' is the most frequent answer of each task."
        )
    for run in runs:
        lines += _measured_lines(run)
    return Comparison(lines=lines, tasks=_by_task(runs), notes=notes)


def _published_lines(model: str | None) -> Iterator[Line]:
    results = published().results
    models = {result.model for result in results}
    if model is not None and model not in models:
        raise HeadEditError(f"There are no published figures of '{model}'.{suggest(model, models)}")
    for result in results:
        if model in (None, result.model):
            figures = {name: Figure(value=getattr(result, name)) for name in COLUMNS}
            yield Line(
                origin="published", model=result.model, method=result.method, figures=figures, source=result.source
            )


def _measured_lines(run: SavedRun) -> Iterator[Line]:
    reports = list(run.reports.values())
    edited = any(report.get("base") for report in reports)
    yield _line(run, run.name, [(report, report["score"]) for report in reports])
    if edited:
        yield _line(run, f"{run.name}: base", [(r, r["base"]) for r in reports if r.get("base")])
    constant = [
        (report, {"metrics": {ACCURACY: report["constant"]["value"]}})
        for report in reports
        if report["metric"] == ACCURACY
    ]
    if constant:
        yield _line(run, f"{run.name}: constant answer", constant)


def _line(run: SavedRun, method: str, scores: Sequence[tuple[dict[str, Any], dict[str, Any]]]) -> Line:
    figures = {name: _average(column, scores) for name, column in COLUMNS.items()}
    kept = {name: figure for name, figure in figures.items() if figure is not None}
    return Line(origin="measured", model=run.model, method=method, figures=kept)


def _average(column: Column, scores: Sequence[tuple[dict[str, Any], dict[str, Any]]]) -> Figure | None:
    """The mean over the column's tasks, or over their groups."""
    parts: dict[str, Part] = {}
    covered: set[str] = set()
    for report, score in scores:
        if report["task"].partition(":")[0] in column.tasks and column.metric in score["metrics"]:
            parts |= _parts(column, report, score)
            covered |= set(report["score"].get("groups") or [report["task"]])
    if not parts:
        return None
    number, unit = column.parts
    return Figure(
        value=sum(value for value, _ in parts.values()) / len(parts),
        interval=_interval(list(parts.values())),
        missing=f"{len(covered)} of {number} {unit}" if len(covered) < number else None,
    )


def _parts(column: Column, report: dict[str, Any], score: dict[str, Any]) -> dict[str, Part]:
    """Each group of a report, or all of it, by name."""
    scale = 100 if column.metric == ACCURACY else 1
    found: dict[str, Part]
    of_headline = report["metric"] == column.metric
    if score.get("groups") and column.metric == ACCURACY and of_headline:
        found = {name: (share, wilson(round(share * n), n)) for name, (n, share) in score["groups"].items()}
    else:
        found = {report["task"]: (score["metrics"][column.metric], score.get("interval") if of_headline else None)}
    return {
        name: (scale * value, None if interval is None else (scale * interval[0], scale * interval[1]))
        for name, (value, interval) in found.items()
    }


def _interval(parts: Sequence[Part]) -> tuple[float, float] | None:
    """The interval of a mean of independent figures from theirs, which may be asymmetric (Zou and Donner 2008)."""
    if any(interval is None for _, interval in parts):
        return None
    mean = sum(value for value, _ in parts) / len(parts)
    below = math.hypot(*(value - interval[0] for value, interval in parts if interval)) / len(parts)
    above = math.hypot(*(interval[1] - value for value, interval in parts if interval)) / len(parts)
    return mean - below, mean + above


def _by_task(runs: Sequence[SavedRun]) -> tuple[list[str], Cells]:
    header = ["task", "metric", "n", *(run.name for run in runs)]
    tasks = dict.fromkeys(
        (task, metric) for run in runs for task, report in run.reports.items() for metric in report["score"]["metrics"]
    )
    cells = []
    for task, metric in tasks:
        reports = [run.reports.get(task) for run in runs]
        counts = dict.fromkeys(str(report["n"]) for report in reports if report)
        cells.append([task, metric, " / ".join(counts), *(_cell(report, metric) for report in reports)])
    return header, cells


def _cell(report: dict[str, Any] | None, metric: str) -> str:
    if report is None or metric not in report["score"]["metrics"]:
        return ""
    value = shown(metric, report["score"]["metrics"][metric])
    if metric != report["metric"]:
        return value
    low, high = (shown(metric, end) for end in report["score"]["interval"])
    return f"{value} [{low}, {high}]"
