"""The pictures of a comparison of methods: score against examples, and score against parameters."""

import math
from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from headedit.bench.plots.axes import WIDTH, check_rows
from headedit.bench.results import Row, grouped
from headedit.interpret.labels import axis_label
from headedit.interpret.palette import GRID, OWN_STYLES, PEER_STYLES, STYLES
from headedit.interpret.plots.parameters import scores_by_parameters


def by_examples(summary: Sequence[Row]) -> Figure:
    """Draws the score of every method by the number of training examples, a panel per task, with 95 % intervals.

    Args:
        summary: lines of a comparison, per task, size and method.

    Raises:
        HeadEditError: there are none.
    """
    check_rows(summary)
    figure, axes, names = _panels(summary)
    for axis, task in zip(axes, names, strict=True):
        for (method,), lines in grouped([line for line in summary if line["task"] == task], "method").items():
            colour, marker = STYLES[method]
            lines = sorted(lines, key=lambda line: int(line["size"]))
            shift = 1 + 0.01 * (list(STYLES).index(method) - len(STYLES) / 2)
            sizes, scores = [line["size"] * shift for line in lines], [line["score"] for line in lines]
            ends = [[s - line["score_low"] for s, line in zip(scores, lines, strict=True)]]
            ends.append([line["score_high"] - s for s, line in zip(scores, lines, strict=True)])
            style = "-" if method in OWN_STYLES else "--" if method in PEER_STYLES else ":"
            axis.errorbar(
                sizes, scores, yerr=ends, color=colour, marker=marker, markersize=5, linewidth=1.2, linestyle=style,
                elinewidth=0.6, label=method,
            )  # fmt: skip
        sizes = sorted({line["size"] for line in summary})
        axis.set_xscale("log")
        axis.set_xticks(sizes, [str(size) for size in sizes])
        axis.minorticks_off()
        axis.set_xlabel(axis_label("examples"))
    _finish(figure, axes, summary, "Score by the number of examples (bars: 95 % interval)")
    return figure


def by_parameters(summary: Sequence[Row]) -> Figure:
    """Draws the score of every method that learns by the number of its parameters, a panel per task, largest size.

    Args:
        summary: lines of a comparison, per task, size and method.

    Raises:
        HeadEditError: there are none.
    """
    check_rows(summary)
    return scores_by_parameters(summary)


def _panels(summary: Sequence[Row]) -> tuple[Figure, list[Axes], list[str]]:
    names = list(dict.fromkeys(line["task"] for line in summary))
    across = min(3, len(names))
    down = math.ceil(len(names) / across)
    figure, axes = plt.subplots(
        down, across, figsize=(WIDTH, 1.6 + 3.2 * down), layout="constrained", sharey=True, squeeze=False
    )
    for axis in axes.flat[len(names) :]:
        axis.set_axis_off()
    return figure, list(axes.flat[: len(names)]), names


def _finish(figure: Figure, axes: Sequence[Axes], summary: Sequence[Row], title: str) -> None:
    entries: dict[str, Any] = {}
    for axis in axes:
        axis.grid(color=GRID, linewidth=0.6)
        axis.set_axisbelow(True)
        for handle, name in zip(*axis.get_legend_handles_labels(), strict=True):
            entries.setdefault(name, handle)
    for axis, name in zip(axes, dict.fromkeys(line["task"] for line in summary), strict=True):
        axis.set_title(name, fontsize=11)
    metrics = list(dict.fromkeys(line["metric"] for line in summary))
    axes[0].set_ylabel(metrics[0] if len(metrics) == 1 else axis_label("score"))
    figure.legend(list(entries.values()), list(entries), loc="outside lower center", ncols=6, frameon=False, fontsize=9)
    figure.suptitle(title, fontsize=12)
