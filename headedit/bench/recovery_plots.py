"""Pictures of the benches: which recipe finds planted heads, with how many examples, and the embedded model's tasks."""

import math
from collections.abc import Sequence
from typing import Any, Literal

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from headedit.errors import HeadEditError

Row = dict[str, Any]

PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#f0e442")
"""Okabe and Ito's colours, which colour-blind eyes tell apart."""

_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
_GREY = "#444444"
_FIXED = {"localise": 0, "LoRA r 8": 1, "no gate": 2, "jola": 3, "lofit": 4, "ist": 5, "rst": 6}
_WIDTH = 9.0  # inches, as wide as a notebook


def localisation(rows: Sequence[Row]) -> Figure:
    """F1 and accuracy of every recipe, run by run.

    Args:
        rows: of ``headedit.bench.recovery.localisation.bench_localise``.

    Returns:
        A figure with three panels: F1 of offsets, F1 of scales, and token accuracy, with a dot a run and a bar at the
        mean. The oracle's mean is a dashed line, the unedited model's a dotted one.

    Raises:
        HeadEditError: there are no rows.
    """
    _check(rows)
    names = list(dict.fromkeys(row["recipe"] for row in rows))
    shapes = list(dict.fromkeys(row["shape"] for row in rows))
    figure, axes = plt.subplots(1, 3, figsize=(_WIDTH, 1.9 + 0.42 * len(names)), layout="constrained", sharey=True)
    panels = (("f1_offset", "F1 of offset heads"), ("f1_scale", "F1 of scale heads"), ("accuracy", "Token accuracy"))
    for axis, (key, title) in zip(axes, panels, strict=True):
        for place, name in enumerate(names):
            _strip(axis, [row for row in rows if row["recipe"] == name], key, place, name, shapes)
        axis.set_title(title, fontsize=11)
        axis.set_xlim(-0.04, 1.04)
        axis.grid(axis="x", color="#dddddd", linewidth=0.6)
        axis.set_axisbelow(True)
    axes[0].set_yticks(range(len(names)), names)
    axes[0].set_ylim(len(names) - 0.4, -0.6)
    axes[0].set_xlabel("F1, planted against chosen")
    axes[1].set_xlabel("F1, planted against chosen")
    axes[2].set_xlabel("share of test tokens")
    handles = [
        Line2D([], [], color=_GREY, marker=_MARKERS[i], linestyle="", markersize=5, label=f"{shape}, one run")
        for i, shape in enumerate(shapes)
    ]
    handles.append(
        Line2D([], [], color=_GREY, marker="|", linestyle="", markersize=13, markeredgewidth=2, label="mean")
    )
    lines: tuple[tuple[str, str, Literal["--", ":"]], ...]
    lines = (("oracle", "oracle, mean", "--"), ("unedited", "unedited, mean", ":"))
    for key, label, style in lines:
        values = [row[key] for row in rows if row.get(key) is not None]
        if values:
            axes[2].axvline(sum(values) / len(values), color=_GREY, linestyle=style, linewidth=1.3)
            handles.append(Line2D([], [], color=_GREY, linestyle=style, linewidth=1.3, label=label))
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, fontsize=9)
    figure.suptitle("Which recipe finds the planted heads", fontsize=12)
    return figure


def curve(rows: Sequence[Row]) -> Figure:
    """Token accuracy by the number of training examples.

    Args:
        rows: of ``headedit.bench.recovery.localisation.bench_curve``.

    Returns:
        A figure with one panel: a line a recipe at the mean, and a band from the least run to the best.

    Raises:
        HeadEditError: there are no rows.
    """
    _check(rows)
    figure, axis = plt.subplots(figsize=(_WIDTH, 4.6), layout="constrained")
    _lines(axis, rows, "recipe", "examples", "accuracy")
    unedited = [row["unedited"] for row in rows]
    axis.axhline(sum(unedited) / len(unedited), color=_GREY, linestyle=":", linewidth=1.3, label="unedited")
    axis.set_xlabel("training examples")
    axis.set_ylabel("token accuracy on unseen examples")
    axis.legend(frameon=False, fontsize=9, loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.suptitle("Planted heads: accuracy by number of examples (band: least to best run)", fontsize=12)
    return figure


def tasks(rows: Sequence[Row]) -> Figure:
    """Exact match of every task by the number of training examples.

    Args:
        rows: of ``headedit.bench.recovery.compare.compare``.

    Returns:
        A figure with a panel a task and a line a contender at the mean, with a band from the least run to the best.

    Raises:
        HeadEditError: there are no rows.
    """
    _check(rows)
    names = list(dict.fromkeys(row["task"] for row in rows))
    across = min(3, len(names))
    down = math.ceil(len(names) / across)
    figure, axes = plt.subplots(
        down, across, figsize=(_WIDTH, 0.9 + 2.5 * down), layout="constrained", sharex=True, sharey=True, squeeze=False
    )
    for axis, name in zip(axes.flat, names, strict=False):
        _lines(axis, [row for row in rows if row["task"] == name], "contender", "size", "exact_match")
        axis.set_title(name, fontsize=11)
    for axis in axes.flat[len(names) :]:
        axis.set_axis_off()
    for column in range(across):
        last = (len(names) - 1 - column) // across
        axes[last, column].set_xlabel("training examples")
        axes[last, column].tick_params(labelbottom=True)
    for axis in axes[:, 0]:
        axis.set_ylabel("exact match")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    columns = min(4, len(handles))
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False, fontsize=9)
    figure.suptitle("The embedded model: exact match on unseen examples (band: least to best run)", fontsize=12)
    return figure


def _strip(axis: Axes, rows: Sequence[Row], key: str, place: int, name: str, shapes: Sequence[str]) -> None:
    """Dots of one recipe in a panel, a marker a shape, each shape on a line of its own, and the mean over all."""
    colour, _ = _style(name)
    values = [row[key] for row in rows if row[key] is not None]
    if not values:
        axis.text(0.5, place, "does not choose", ha="center", va="center", fontsize=8, color=_GREY)
        return
    for i, shape in enumerate(shapes):
        there = [row[key] for row in rows if row["shape"] == shape and row[key] is not None]
        lane = place + 0.2 * (i - (len(shapes) - 1) / 2)
        axis.plot(there, [lane] * len(there), color=colour, marker=_MARKERS[i], linestyle="", alpha=0.6, markersize=5)
    mean = sum(values) / len(values)
    axis.plot([mean], [place], color=colour, marker="|", markersize=19, markeredgewidth=2.5, label=name, zorder=4)


def _lines(axis: Axes, rows: Sequence[Row], by: str, x: str, y: str) -> None:
    sizes = sorted({row[x] for row in rows})
    for name in dict.fromkeys(row[by] for row in rows):
        found = {size: [row[y] for row in rows if row[by] == name and row[x] == size] for size in sizes}
        there = [size for size in sizes if found[size]]
        means = [sum(found[size]) / len(found[size]) for size in there]
        colour, marker = _style(name)
        style = ":" if name == "unedited" else "-"
        axis.plot(there, means, color=colour, marker=marker, markersize=5, linewidth=1.5, linestyle=style, label=name)
        low, high = ([bound(found[size]) for size in there] for bound in (min, max))
        axis.fill_between(there, low, high, color=colour, alpha=0.12, linewidth=0)
    axis.set_xscale("log")
    axis.set_xticks(sizes, [str(size) for size in sizes])
    axis.minorticks_off()
    axis.set_ylim(-0.03, 1.03)
    axis.grid(color="#dddddd", linewidth=0.6)
    axis.set_axisbelow(True)


def _style(name: str) -> tuple[str, str]:
    """Colour and marker of a contender, the same in every picture."""
    if name in ("oracle", "unedited"):
        return _GREY, "." if name == "unedited" else _MARKERS[-1]
    place = _FIXED.get(name, len(PALETTE) - 1)
    return PALETTE[place], _MARKERS[place]


def _check(rows: Sequence[Row]) -> None:
    if not rows:
        raise HeadEditError("The bench has no rows, so there is nothing to draw.")
