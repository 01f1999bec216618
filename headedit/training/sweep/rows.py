"""The results of a sweep: one row per run, their mean and spread, and what the validation loss chooses."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from headedit.io.html import html_block, html_table
from headedit.runs.stability import Spread

VALIDATION_LOSS, SECONDS = "validation loss", "seconds"


@dataclass(frozen=True, kw_only=True)
class SweepRow:
    """The result of one run.

    Fields:
        task: name of the task.
        fields: the values of the fields that the sweep lists.
        seed: the seed.
        folder: the output folder.
        figures: by name: losses in nats per token, seconds, number of edited heads, and scores.
        error: the message of the error with which the run failed; None if it did not fail.
    """

    task: str
    fields: dict[str, Any]
    seed: int
    folder: str
    figures: dict[str, float] = field(default_factory=dict)
    error: str | None = None

    def __repr__(self) -> str:
        return f"SweepRow({_run_name(self.task, self.fields)}, seed {self.seed}: {self.error or _text(self.figures)})"

    def _repr_html_(self) -> str:
        name = f"{_run_name(self.task, self.fields)}, seed {self.seed}"
        rows = [(figure, f"{value:.4g}") for figure, value in self.figures.items()]
        return html_block(
            name, html_table([], [*rows, ("failed", self.error) if self.error else ("folder", self.folder)])
        )


@dataclass(frozen=True, kw_only=True)
class SweepGroup:
    """Mean and spread of the runs of one task over its seeds, or of all tasks, with the same fields.

    Fields:
        task: name of the task; ``mean`` for the mean of all tasks.
        over: what mean and spread are over, ``seeds`` or ``tasks``.
        fields: the values of the fields that the sweep lists.
        runs: number of runs that succeeded, of all tasks together where it is over tasks.
        failed: number of runs that failed, likewise.
        figures: mean and spread of each figure.
    """

    task: str
    over: Literal["seeds", "tasks"]
    fields: dict[str, Any]
    runs: int
    failed: int
    figures: dict[str, Spread]

    def __repr__(self) -> str:
        means = {name: spread.mean for name, spread in self.figures.items()}
        return f"SweepGroup({_run_name(self.task, self.fields)}, {self._mean_of()}: {_text(means)})"

    def _repr_html_(self) -> str:
        rows = [(name, f"{spread.mean:.4g}", f"{spread.std:.2g}") for name, spread in self.figures.items()]
        table = html_table(["", self._mean_of(), "standard deviation"], rows, left=1)
        return html_block(_run_name(self.task, self.fields), table)

    def _mean_of(self) -> str:
        """Of how many seeds or tasks it is the mean: of each task, a figure has one value."""
        count = self.runs if self.over == "seeds" else max((len(s.values) for s in self.figures.values()), default=0)
        return f"mean of {count} {self.over}"


def _run_name(task: str, fields: dict[str, Any]) -> str:
    return ", ".join([task, *(f"{name} = {value}" for name, value in fields.items())])


def _text(figures: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in figures.items())


def grouped(rows: Sequence[SweepRow]) -> list[SweepGroup]:
    """Mean and spread of every task over its seeds, then, if there are several tasks, their means."""
    groups: dict[tuple[str, str], list[SweepRow]] = {}
    for row in rows:
        groups.setdefault((row.task, json.dumps(row.fields)), []).append(row)
    found = [_group(members[0].task, members) for members in groups.values()]
    by_fields: dict[str, list[SweepGroup]] = {}
    for group in found:
        by_fields.setdefault(json.dumps(group.fields), []).append(group)
    return found + [_mean(members) for members in by_fields.values() if len(members) > 1]


def chosen(rows: Sequence[SweepRow]) -> list[SweepGroup]:
    """The fields that the validation loss chooses for each task: those with the lowest mean over the seeds.

    Empty where a sweep has no fields to choose from. Fields with a run that failed, or whose validation loss is
    missing or not finite, cannot be chosen.
    """
    if len({json.dumps(row.fields) for row in rows}) < 2:
        return []
    best: dict[str, SweepGroup] = {}
    for group in grouped(rows):
        loss = group.figures.get(VALIDATION_LOSS)
        if group.over == "tasks" or group.failed or loss is None or not math.isfinite(loss.mean):
            continue
        before = best.get(group.task)
        if before is None or loss.mean < before.figures[VALIDATION_LOSS].mean:
            best[group.task] = group
    return list(best.values())


def sweep_record(rows: Sequence[SweepRow]) -> dict[str, Any]:
    """Rows, groups, and the groups that the validation loss chooses, as plain data for JSON."""
    return {
        "runs": [asdict(row) for row in rows],
        "groups": [asdict(group) for group in grouped(rows)],
        "chosen": [asdict(group) for group in chosen(rows)],
    }


def figure_names(rows: Sequence[SweepRow]) -> list[str]:
    """The names of all figures of any row, in the order in which they first occur."""
    return list(dict.fromkeys(name for row in rows for name in row.figures))


def _group(task: str, members: Sequence[SweepRow]) -> SweepGroup:
    done = [row for row in members if row.error is None]
    figures = {
        name: Spread.of([row.figures[name] for row in done if name in row.figures]) for name in figure_names(done)
    }
    return SweepGroup(
        task=task,
        over="seeds",
        fields=members[0].fields,
        runs=len(done),
        failed=len(members) - len(done),
        figures=figures,
    )


def _mean(groups: Sequence[SweepGroup]) -> SweepGroup:
    """The mean of the tasks' means, for every figure that all of them have."""
    names = [name for name in groups[0].figures if all(name in group.figures for group in groups)]
    return SweepGroup(
        task="mean",
        over="tasks",
        fields=groups[0].fields,
        runs=sum(group.runs for group in groups),
        failed=sum(group.failed for group in groups),
        figures={name: Spread.of([group.figures[name].mean for group in groups]) for name in names},
    )
