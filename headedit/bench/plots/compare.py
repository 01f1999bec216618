"""The picture of methods against each other on tasks."""

import math
from collections.abc import Sequence

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from headedit.bench.plots.axes import WIDTH, check_rows, method_lines
from headedit.bench.results import Row
from headedit.interpret.labels import axis_label


def tasks(rows: Sequence[Row]) -> Figure:
    """Draws the exact match of every method on every task by the number of training examples.

    Args:
        rows: of ``compare_methods``.

    Returns:
        A figure with a panel per task and a line per method at the mean, with a band from the worst run to the best.

    Raises:
        HeadEditError: there are no rows.
    """
    check_rows(rows)
    names = list(dict.fromkeys(row["task"] for row in rows))
    across = min(3, len(names))
    down = math.ceil(len(names) / across)
    figure, axes = plt.subplots(
        down, across, figsize=(WIDTH, 0.9 + 2.5 * down), layout="constrained", sharex=True, sharey=True, squeeze=False
    )
    for axis, name in zip(axes.flat, names, strict=False):
        method_lines(axis, [row for row in rows if row["task"] == name], "method", "size", "exact_match")
        axis.set_title(name, fontsize=11)
    for axis in axes.flat[len(names) :]:
        axis.set_axis_off()
    for column in range(across):
        last = (len(names) - 1 - column) // across
        axes[last, column].set_xlabel(axis_label("examples"))
        axes[last, column].tick_params(labelbottom=True)
    for axis in axes[:, 0]:
        axis.set_ylabel(axis_label("exact_match"))
    handles, labels = axes[0, 0].get_legend_handles_labels()
    columns = min(4, len(handles))
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False, fontsize=9)
    figure.suptitle("Exact match on unseen examples (band: worst to best run)", fontsize=12)
    return figure
