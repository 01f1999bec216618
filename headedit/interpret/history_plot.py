"""The course of a run: losses and penalty, open gates, and every gate by itself."""

from collections.abc import Iterable
from os import PathLike
from typing import Any, Protocol

import matplotlib.pyplot as plt
import numpy
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from headedit.errors import HeadEditError
from headedit.history import History

OFFSET, SCALE, THIRD = "#0072b2", "#d55e00", "#444444"  # Okabe and Ito's colour-blind safe palette


class HasHistory(Protocol):
    """Anything with a history, such as the run that ``fit`` returns."""

    @property
    def history(self) -> History:
        """The logged steps."""


def history(run: "HasHistory | History | str | PathLike[str]") -> Figure:
    """Loss, penalty, open gates and learning rates against the step.

    Args:
        run: what ``fit`` returned, a history, or the folder of a run.

    Returns:
        A figure with three panels: the losses and penalty in nats; the number of open gates; the value of
        every single gate.

    Raises:
        HeadEditError: there is no history, or it has no logged step.
    """
    if isinstance(run, str | PathLike):
        rows = History.read(run)
    else:
        rows = run if isinstance(run, History) else run.history
    if not rows.column("loss")[0]:
        raise HeadEditError(f"{rows.path or 'The history'}: no step was logged, so there is nothing to draw.")
    figure, axes = plt.subplots(3, 1, figsize=(9.0, 8.0), layout="constrained", sharex=True)
    _losses(axes[0], rows)
    _open_gates(axes[1], rows)
    _single_gates(axes[2], rows)
    _stages(axes, rows)
    for step in rows.column("kept")[0][-1:]:
        for axis in axes:
            axis.axvline(step, color=THIRD, linestyle=":", linewidth=1.2, label="edits kept")
    for axis in axes:
        axis.legend(frameon=False, fontsize=9, loc="center left", bbox_to_anchor=(1.0, 0.5))  # beside the curves
    axes[-1].set_xlabel("optimiser step")
    figure.suptitle("History of the run", fontsize=12)
    return figure


def _stages(axes: Iterable[Axes], rows: History) -> None:
    """A line where a stage of the run begins, with its name at the first panel; nothing for a single stage."""
    starts: dict[str, float] = {}
    end = 0.0
    for step, stage in zip(*rows.column("stage"), strict=True):
        starts.setdefault(stage, end)
        end = step
    if len(starts) < 2:
        return
    for i, (stage, start) in enumerate(starts.items()):
        for panel, axis in enumerate(axes):
            axis.axvline(start, color="#bbbbbb", linewidth=0.8, zorder=0)
            if panel == 0:
                height = 1.0 - 0.09 * (i % 3)
                axis.text(
                    start, height, f" {stage}", transform=axis.get_xaxis_transform(), fontsize=8, va="top", color=THIRD
                )


def _losses(axis: Axes, rows: History) -> None:
    curves: list[tuple[str, str, dict[str, Any]]] = [
        ("loss", "training loss", {"color": OFFSET}),
        ("eval_loss", "validation loss", {"color": SCALE, "marker": "o", "markersize": 4}),
        ("penalty", "penalty  λ·Σ P(g ≠ 0)", {"color": THIRD, "linestyle": "--"}),
    ]
    for key, label, style in curves:
        steps, values = rows.column(key)
        if steps and any(values):
            axis.plot(steps, values, label=label, **style)
    axis.set_yscale("log")
    axis.set_ylabel("nats a token")
    axis.set_title("Loss on the response tokens", fontsize=11)


def _open_gates(axis: Axes, rows: History) -> None:
    for key, label, colour, style in (
        ("open_offset", "offset gates", OFFSET, "-"),
        ("open_scale", "scale gates", SCALE, "--"),
    ):
        axis.plot(*rows.column(key), label=label, color=colour, linestyle=style)
    axis.set_ylim(bottom=0)
    axis.set_ylabel("number open")
    axis.set_title("Open gates", fontsize=11)


def _single_gates(axis: Axes, rows: History) -> None:
    steps, snapshots = rows.column("gates")
    for kind, label, colour, style in (("offset", "offset", OFFSET, "-"), ("scale", "scale", SCALE, "--")):
        series = [[g for site in snapshot for g in site.get(kind, [])] for snapshot in snapshots]
        values = numpy.asarray(series)
        if values.size:
            lines = axis.plot(steps, values, color=colour, linestyle=style, linewidth=0.8, alpha=0.5)
            lines[0].set_label(label)
    axis.set_ylim(-0.03, 1.03)
    axis.set_ylabel("gate value")
    axis.set_title("Every gate", fontsize=11)
