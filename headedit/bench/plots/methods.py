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
from headedit.interpret.palette import GRID, OTHER_METHOD

_OURS = {
    "localise": ("#0072b2", "o"),
    "jola": ("#cc79a7", "s"),
    "no gate": ("#009e73", "^"),
    "offset only": ("#009e73", "<"),
    "scale only": ("#009e73", ">"),
    "lofit": ("#332288", "D"),
    "ist": ("#2f9bd6", "v"),
    "rst": ("#000000", "P"),
}
_PEERS = {
    "lora": ("#d55e00", "o"),
    "dora": ("#d55e00", "s"),
    "ia3": ("#e69f00", "^"),
    "ln": ("#e69f00", "D"),
    "bitfit": ("#a6761d", "v"),
    "red": ("#a6761d", "P"),
    "loreft": ("#8c510a", "X"),
    "prompt tuning": ("#8c510a", "*"),
}
_STYLES = {**_OURS, **_PEERS, "few-shot": ("#444444", "x"), "zero-shot": (OTHER_METHOD, ".")}


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
            colour, marker = _STYLES[method]
            lines = sorted(lines, key=lambda line: int(line["size"]))
            shift = 1 + 0.01 * (list(_STYLES).index(method) - len(_STYLES) / 2)
            sizes, scores = [line["size"] * shift for line in lines], [line["score"] for line in lines]
            ends = [[s - line["score_low"] for s, line in zip(scores, lines, strict=True)]]
            ends.append([line["score_high"] - s for s, line in zip(scores, lines, strict=True)])
            style = "-" if method in _OURS else "--" if method in _PEERS else ":"
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
    largest = max(line["size"] for line in summary)
    figure, axes, names = _panels(summary)
    for axis, task in zip(axes, names, strict=True):
        lines = [line for line in summary if line["task"] == task and line["size"] == largest]
        for line in lines:
            colour, marker = _STYLES[line["method"]]
            if not line["parameters"]:
                axis.axhline(line["score"], color=colour, linestyle=":", linewidth=1.2, label=line["method"])
                continue
            ends = [[line["score"] - line["score_low"]], [line["score_high"] - line["score"]]]
            axis.errorbar(
                line["parameters"], line["score"], yerr=ends, color=colour, marker=marker, markersize=6, linestyle="",
                elinewidth=0.6, label=line["method"],
            )  # fmt: skip
        axis.set_xscale("log")
        axis.set_xlabel(axis_label("parameters"))
    _finish(figure, axes, summary, f"Score by the number of parameters, from {largest} examples (bars: 95 % interval)")
    return figure


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
