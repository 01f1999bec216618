"""Shows reports as tables, one row per task, for the terminal and as Markdown."""

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.markup import escape

from headedit.evaluation.reports.report import Report, Score, shown
from headedit.evaluation.tasks.task import ACCURACY
from headedit.io.tables import markdown_table, rich_table

Cells = list[list[str]]

_NOTE = (
    "In brackets the 95 % interval; accuracy in per cent. 'model' is with its edits, 'base' the same model with the "
    "edits switched off, and p the paired test of the two. 'constant' is the most frequent answer of these examples "
    "given every time, 'majority' that of the training split. Pairs are model / base."
)


def tables(reports: Sequence[Report]) -> list[tuple[str, list[str], Cells]]:
    """Title, header and cells of each table: the figures, the other metrics, the groups, and what it took."""
    header = ["task", "n", "model", "base", "p", "constant", "majority"]
    found = [("Evaluation", header, [_figures(report) for report in reports])]
    others = [row for report in reports for row in _other_metrics(report)]
    if others:
        found.append(("All metrics", ["metric", "n", "model", "base"], others))
    for report in reports:
        if report.score.groups:
            found.append((f"{report.task} by group", ["group", "n", "model", "base"], _groups(report)))
    header = ["task", "scoring", "unparsed", "seconds", "tokens/s"]
    return [*found, ("Answers and time", header, [_answers(report) for report in reports])]


def rich_tables(reports: Sequence[Report]) -> RenderableType:
    """The tables for a terminal, and the remarks."""
    parts = [rich_table(title, header, cells) for title, header, cells in tables(reports)]
    return Group(*parts, *map(escape, _remarks(reports)))


def markdown(reports: Sequence[Report]) -> str:
    """The tables as Markdown, and the remarks."""
    parts = [f"## {title}\n\n{markdown_table(header, cells, left=1)}" for title, header, cells in tables(reports)]
    remarks = "\n".join(f"- {remark}" for remark in _remarks(reports))
    return "\n\n".join(part for part in (*parts, remarks, _NOTE) if part) + "\n"


def _figures(report: Report) -> list[str]:
    metric, base, test, majority = report.metric, report.base, report.test, report.majority
    return [
        _task_label(report.task, metric),
        f"{report.n:,}",
        _with_interval(metric, report.score),
        "" if base is None else _with_interval(metric, base),
        "" if test is None else f"{test.p:.2g}",
        shown(metric, report.constant.value),
        "" if majority is None else shown(metric, majority.value),
    ]


def _answers(report: Report) -> list[str]:
    scores = [score for score in (report.score, report.base) if score is not None]
    return [
        report.task,
        report.scoring,
        " / ".join(f"{score.unparsed:,}" for score in scores),
        " / ".join(f"{score.seconds:,.1f}" for score in scores),
        " / ".join(f"{score.tokens_per_second:,.0f}" for score in scores),
    ]


def _other_metrics(report: Report) -> Cells:
    metrics, base = report.score.metrics, report.base
    return [
        [
            _task_label(report.task, name),
            f"{report.n:,}",
            shown(name, value),
            "" if base is None else shown(name, base.metrics[name]),
        ]
        for name, value in metrics.items()
        if len(metrics) > 1
    ]


def _groups(report: Report) -> Cells:
    score, base = report.score, report.base
    cells = [
        [
            name,
            f"{n:,}",
            shown(report.metric, value),
            "" if base is None else shown(report.metric, base.groups[name][1]),
        ]
        for name, (n, value) in score.groups.items()
    ]
    means = [None if found is None else found.mean_of_groups for found in (score, base)]
    shown_means = ["" if mean is None else shown(report.metric, mean) for mean in means]
    return [*cells, ["mean of the groups", f"{report.n:,}", *shown_means]]


def _task_label(task: str, metric: str) -> str:
    return task if metric == ACCURACY else f"{task}: {metric}"


def _with_interval(metric: str, score: Score) -> str:
    low, high = (shown(metric, end) for end in score.interval)
    return f"{shown(metric, score.value)} [{low}–{high}]"


def _remarks(reports: Sequence[Report]) -> list[str]:
    return [f"{report.task}: {remark}" for report in reports for remark in report.remarks]
