"""Pictures of planted heads: which recipe finds them, and with how many examples."""

from collections.abc import Sequence
from typing import Literal

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from headedit.bench.plots.axes import MARKERS, WIDTH, check_rows, method_lines, method_style
from headedit.bench.results import Row
from headedit.interpret.labels import axis_label, short
from headedit.interpret.palette import COLOURS, GRID, INK, METHODS

_PANELS = (
    ("f1_offset", "Offset heads", "F1, planted against chosen"),
    ("f1_scale", "Scale heads", "F1, planted against chosen"),
    ("accuracy", "Token accuracy", "share of test tokens"),
)


def localisation(rows: Sequence[Row]) -> Figure:
    """Draws F1 and accuracy of every recipe, run by run.

    Args:
        rows: of ``bench_localise``.

    Returns:
        A figure with three panels: F1 of offset heads, F1 of scale heads, and token accuracy, with a dot per run and a
        bar at the mean. The oracle's mean is a dashed line, the unedited model's a dotted one.

    Raises:
        HeadEditError: there are no rows.
    """
    check_rows(rows)
    names = list(dict.fromkeys(row["recipe"] for row in rows))
    shapes = list(dict.fromkeys(row["shape"] for row in rows))
    figure, axes = plt.subplots(1, 3, figsize=(WIDTH, 1.9 + 0.42 * len(names)), layout="constrained", sharey=True)
    for axis, (key, title, unit) in zip(axes, _PANELS, strict=True):
        for place, name in enumerate(names):
            _strip(axis, [row for row in rows if row["recipe"] == name], key, place, name, shapes)
        axis.set_title(title, fontsize=11)
        axis.set_xlabel(unit)
        axis.set_xlim(-0.04, 1.04)
        axis.grid(axis="x", color=GRID, linewidth=0.6)
        axis.set_axisbelow(True)
    axes[0].set_yticks(range(len(names)), names)
    axes[0].set_ylim(len(names) - 0.4, -0.6)
    handles = [
        Line2D([], [], color=INK, marker=MARKERS[i], linestyle="", markersize=5, label=f"{shape}, one run")
        for i, shape in enumerate(shapes)
    ]
    handles.append(Line2D([], [], color=INK, marker="|", linestyle="", markersize=13, markeredgewidth=2, label="mean"))
    lines: tuple[tuple[str, Literal["--", ":"]], ...] = (("oracle", "--"), ("unedited", ":"))
    for key, style in lines:
        values = [row[key] for row in rows if row.get(key) is not None]
        if values:
            axes[2].axvline(sum(values) / len(values), color=METHODS[key], linestyle=style, linewidth=1.3)
            named = f"{short(key)}, mean"
            handles.append(Line2D([], [], color=METHODS[key], linestyle=style, linewidth=1.3, label=named))
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, fontsize=9)
    figure.suptitle("Which recipe finds the planted heads", fontsize=12)
    return figure


def curve(rows: Sequence[Row]) -> Figure:
    """Draws token accuracy by the number of training examples.

    Args:
        rows: of ``bench_curve``.

    Returns:
        A figure with one panel: a line per recipe at the mean, and a band from the worst run to the best.

    Raises:
        HeadEditError: there are no rows.
    """
    check_rows(rows)
    figure, axis = plt.subplots(figsize=(WIDTH, 4.6), layout="constrained")
    method_lines(axis, rows, "recipe", "examples", "accuracy")
    unedited = [row["unedited"] for row in rows]
    mean = sum(unedited) / len(unedited)
    axis.axhline(mean, color=METHODS["unedited"], linestyle=":", linewidth=1.3, label=short("unedited"))
    axis.set_xlabel(axis_label("examples"))
    axis.set_ylabel(axis_label("accuracy"))
    axis.legend(frameon=False, fontsize=9, loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.suptitle("Planted heads: accuracy by number of examples (band: worst to best run)", fontsize=12)
    return figure


def calibration(summary: Sequence[Row], rows: Sequence[Row]) -> Figure:
    """Draws the true share of false gates against the nominal rate, and the power.

    Args:
        summary: of ``bench_calibration``, a row per nominal rate.
        rows: of the same, a row per problem and rate.

    Returns:
        A figure with two panels. Left, the mean share of false gates over all problems, with two standard errors, the
        rate that the decoys show, and the line that must not be crossed; right, the mean power with a dot per problem.

    Raises:
        HeadEditError: there are no rows.
    """
    check_rows(summary)
    figure, (left, right) = plt.subplots(1, 2, figsize=(WIDTH, 4.2), layout="constrained")
    rates = [row["rate"] for row in summary]
    end = 1.08 * max(rates)
    left.fill_between([0, end], [0, end], [end, end], color=GRID, alpha=0.5, linewidth=0)
    left.plot([0, end], [0, end], color=INK, linestyle="--", linewidth=1.2, label="as many as promised")
    left.errorbar(
        rates,
        [row["false_rate"] for row in summary],
        yerr=[2 * row["false_rate_error"] for row in summary],
        color=COLOURS["validation_loss"],
        marker="o",
        capsize=2,
        label="false, mean ± 2 standard errors",
    )
    decoys = [row["decoy_rate"] for row in summary]
    left.plot(rates, decoys, color=COLOURS["training_loss"], marker="s", linestyle=":", label="what decoys say")
    left.set_xlim(0, end)
    left.set_ylim(0, end)
    left.set_ylabel(axis_label("false_rate"))
    left.legend(frameon=False, fontsize=9, loc="upper left")
    for row in rows:
        right.plot([row["rate"]], [row["power"]], color=COLOURS["heads"], marker="o", markersize=4, alpha=0.15)
    right.plot(rates, [row["power"] for row in summary], color=COLOURS["heads"], marker="o", label="mean")
    right.set_xlim(0, end)
    right.set_ylim(-0.03, 1.03)
    right.set_ylabel(axis_label("power"))
    for axis in (left, right):
        axis.set_xlabel(axis_label("rate"))
        axis.grid(color=GRID, linewidth=0.6)
        axis.set_axisbelow(True)
    problems = len({(row["shape"], row["seed"]) for row in rows})
    figure.suptitle(f"Planted heads: is the promised rate kept?  ({problems} problems)", fontsize=12)
    return figure


def _strip(axis: Axes, rows: Sequence[Row], key: str, place: int, name: str, shapes: Sequence[str]) -> None:
    """Dots of one recipe in a panel, a marker and a line per shape, and the mean over all."""
    colour, _ = method_style(name)
    values = [row[key] for row in rows if row[key] is not None]
    if not values:
        axis.text(0.5, place, "does not choose", ha="center", va="center", fontsize=8, color=INK)
        return
    for i, shape in enumerate(shapes):
        dots = [row[key] for row in rows if row["shape"] == shape and row[key] is not None]
        lane = place + 0.2 * (i - (len(shapes) - 1) / 2)
        axis.plot(dots, [lane] * len(dots), color=colour, marker=MARKERS[i], linestyle="", alpha=0.6, markersize=5)
    mean = sum(values) / len(values)
    axis.plot([mean], [place], color=colour, marker="|", markersize=19, markeredgewidth=2.5, label=name, zorder=4)
