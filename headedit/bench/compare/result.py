"""The tables of a comparison: a line per method, tested against LoRA, ranks over tasks, agreement over seeds."""

import dataclasses
import statistics
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

from headedit.bench.compare.config import CompareConfig
from headedit.bench.compare.learning import LORA
from headedit.bench.results import BenchResult, Row, counted, grouped, mean, table_of, whole_mean
from headedit.evaluation.scores.statistics import (
    PairedTest,
    bootstrap,
    mcnemar,
    paired_bootstrap,
    percentiles,
    wilson,
)
from headedit.evaluation.tasks.task import ACCURACY
from headedit.runs.stability import agreement

_COLUMNS = [
    "method",
    "score",
    "score_low",
    "score_high",
    "against_lora",
    "p_value",
    "parameters",
    "heads",
    "seconds",
    "peak_memory",
    "disk",
]
_MIB = 2**20


def result_of(config: CompareConfig, names: Sequence[str], rows: Sequence[Row]) -> BenchResult:
    """The result of the cells that are finished.

    Args:
        config: the comparison.
        names: the methods.
        rows: of the cells.
    """
    usable = [row for row in rows if "error" not in row]
    summary = _summary(usable)
    tables = []
    for task in config.tasks:
        for size in config.sizes:
            lines = [line for line in summary if (line["task"], line["size"]) == (task, size)]
            if lines:
                metric = lines[0]["metric"]
                tests = lines[0]["test_examples"]
                title = f"{task}, {size} examples: {metric} on {tests} test examples, {counted(config.seeds, 'seed')}"
                incomplete = any(line["runs"] < len(config.seeds) for line in lines)
                columns = [*_COLUMNS[:1], *(["runs"] if incomplete else []), *_COLUMNS[1:]]
                header, cells = table_of(columns, lines)
                tables.append((title, header, cells))
    ranks = _ranks(summary, names)
    if ranks:
        header, cells = table_of(["method", "mean_rank", "cells"], ranks)
        tables.append(("Mean rank over all tasks and sizes, 1 is the best", header, cells))
    agreeing = _agreements(usable)
    if agreeing:
        header, cells = table_of(["task", "size", "method", "agreement", "chance"], agreeing)
        tables.append(
            ("Agreement of the chosen heads between seeds (Jaccard index), and of random ones", header, cells)
        )
    failed = [row for row in rows if "error" in row]
    if failed:
        header, cells = table_of(["task", "size", "seed", "method", "error"], failed)
        tables.append(("Not run", header, cells))
    return BenchResult(
        title=f"Methods on {config.model.name}",
        settings={key: value for key, value in dataclasses.asdict(config).items() if key not in ("output", "tasks")}
        | {"tasks": {name: dataclasses.asdict(task) for name, task in config.tasks.items()}, "methods": list(names)},
        rows=list(rows),
        summary=summary + ranks + agreeing,
        tables=tables,
    )


def _summary(rows: Sequence[Row]) -> list[Row]:
    """A line per task, size and method: means over the seeds, and the test against LoRA on those that both have."""
    lines = []
    groups = grouped(rows, "task", "size", "method")
    for (task, size, method), found in groups.items():
        low, high = _interval(found)
        difference, test = _against(found, groups.get((task, size, LORA), [])) if method != LORA else (None, None)
        lines.append(
            {
                "task": task,
                "size": size,
                "method": method,
                "runs": len(found),
                "metric": found[0]["metric"],
                "test_examples": found[0]["test_examples"],
                "score": mean(row["score"] for row in found),
                "score_low": low,
                "score_high": high,
                "against_lora": difference,
                "p_value": None if test is None else test.p,
                "test": None if test is None else test.name,
                "parameters": whole_mean(row["parameters"] for row in found),
                "heads": mean(row["heads"] for row in found),
                "seconds": mean(row["seconds"] for row in found),
                "peak_memory": _mib(mean(row["peak_bytes"] for row in found)),
                "disk": _mib(mean(row["disk_bytes"] for row in found)),
                "learning_rates": [row["learning_rate"] for row in found],
                "notes": "; ".join(dict.fromkeys(row["notes"] for row in found if row["notes"])),
            }
        )
    return lines


def _mib(number: float | None) -> float | None:
    return None if number is None else round(number / _MIB, 3)


def _interval(rows: Sequence[Row]) -> tuple[float, float]:
    """The 95 % interval of the mean over the seeds: that of the one run, or by the examples' means over the seeds.

    The seeds answer the same test examples, so their answers are not so many independent ones. For a metric of the
    whole set it is the mean of the ends.
    """
    if len(rows) == 1 or any(row["values"] is None for row in rows):
        return statistics.fmean(row["low"] for row in rows), statistics.fmean(row["high"] for row in rows)
    values = _by_example(row["values"] for row in rows)
    if set(values) <= {0.0, 1.0} and rows[0]["metric"] == ACCURACY:
        return wilson(round(sum(values)), len(values))
    return percentiles(bootstrap(partial(_mean_of, values), len(values)))


def _against(rows: Sequence[Row], others: Sequence[Row]) -> tuple[float | None, PairedTest | None]:
    """The difference of a method to another on the seeds that both have, and the paired test on the test examples.

    Each example counts once, by its mean over the seeds. Without common seeds both are None; for a metric of the whole
    set there is no test.
    """
    by_seed = {row["seed"]: row for row in others}
    pairs = [(row, by_seed[row["seed"]]) for row in rows if row["seed"] in by_seed]
    if not pairs:
        return None, None
    if any(row["values"] is None for pair in pairs for row in pair):
        return statistics.fmean(ours["score"] - theirs["score"] for ours, theirs in pairs), None
    ours, theirs = (_by_example(pair[side]["values"] for pair in pairs) for side in (0, 1))
    difference = statistics.fmean(ours) - statistics.fmean(theirs)
    if {*ours, *theirs} <= {0.0, 1.0}:
        return difference, mcnemar([value == 1.0 for value in ours], [value == 1.0 for value in theirs])
    drawn = [bootstrap(partial(_mean_of, values), len(values)) for values in (ours, theirs)]
    return difference, paired_bootstrap(drawn[0], drawn[1], difference, len(ours))


def _by_example(runs: Iterable[Sequence[float]]) -> list[float]:
    """The mean over the seeds of the value of each test example."""
    return [statistics.fmean(values) for values in zip(*runs, strict=True)]


def _mean_of(values: Sequence[float], chosen: Sequence[int]) -> float:
    return statistics.fmean(values[i] for i in chosen)


def _ranks(summary: Sequence[Row], names: Sequence[str]) -> list[Row]:
    """The mean rank of each method over tasks and sizes in which every one of these methods was run; ties share it."""
    by_cell = grouped(summary, "task", "size")
    places: dict[str, list[float]] = {}
    for lines in by_cell.values():
        if len(lines) < len(names) and len(by_cell) > 1:
            lines = [line for line in lines if all(line["method"] in _methods(other) for other in by_cell.values())]
        scores = [line["score"] for line in lines]
        for line in lines:
            above = sum(score > line["score"] for score in scores)
            ties = sum(score == line["score"] for score in scores)
            places.setdefault(line["method"], []).append(above + (ties + 1) / 2)
    found: list[Row] = [
        {"method": name, "mean_rank": statistics.fmean(ranks), "cells": len(ranks)} for name, ranks in places.items()
    ]
    return sorted(found, key=lambda row: float(row["mean_rank"])) if len(found) > 1 else []


def _methods(lines: Sequence[Row]) -> set[Any]:
    return {line["method"] for line in lines}


def _agreements(rows: Sequence[Row]) -> list[Row]:
    lines: list[Row] = []
    for (task, size, method), found in grouped(rows, "task", "size", "method").items():
        chosen = [{(site, head) for site, head in row["found"]} for row in found if row["found"] is not None]
        if len(chosen) > 1:
            both, chance = agreement(chosen, found[0]["total_heads"])
            lines.append({"task": task, "size": size, "method": method, "agreement": both, "chance": chance})
    return lines
