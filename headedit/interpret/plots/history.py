"""The history of a run: losses and penalty, open gates, every single gate, λ and learning rates."""

from collections.abc import Sequence
from os import PathLike
from typing import Any, Protocol

import matplotlib.pyplot as plt
import numpy
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from headedit.errors import HeadEditError
from headedit.interpret.labels import LABELS, axis_label, short
from headedit.interpret.palette import COLOURS, FAINT, INK
from headedit.runs.history import History

Curves = tuple[tuple[str, str, str], tuple[str, str, str]]
"""(key in the history, quantity in the table of labels, quantity in the palette) of two curves."""

_OPEN: Curves = (("open_offset", "offset_gates", "offset"), ("open_scale", "scale_gates", "scale"))
_LAMBDAS: Curves = (("lambda_offset", "lambda_offset", "offset"), ("lambda_scale", "lambda_scale", "scale"))
_RATES: Curves = (
    ("learning_rate", "vector_rate", "vector_rate"),
    ("gate_learning_rate", "gate_rate", "gate_rate"),
)
_MOST_LINES = 200


class HasHistory(Protocol):
    """Anything with a history, such as the run that ``fit`` returns."""

    @property
    def history(self) -> History:
        """The logged steps."""


def history(run: "HasHistory | History | str | PathLike[str]") -> Figure:
    """Draws losses, penalty, open gates, λ and learning rates against the step.

    Args:
        run: what ``fit`` returned, a history, or the folder of a run.

    Returns:
        A figure with up to five panels: the losses and penalty in nats; the number of open gates; the value of every
        single gate, or of 200 spread evenly over their last values; λ in nats per gate, where it is not always 0; and
        the learning rates of vectors and gates, where they were logged.

    Raises:
        HeadEditError: there is no history, or it has no logged step.
    """
    if isinstance(run, str | PathLike):
        rows = History.read(run)
    else:
        rows = run if isinstance(run, History) else run.history
    if not rows.column("loss")[0]:
        raise HeadEditError(f"{rows.path or 'The history'}: no step was logged, so there is nothing to draw.")
    panels = [_losses, _open_gates, _single_gates]
    panels += [_lambdas] if _anything(rows, _LAMBDAS) else []
    panels += [_rates] if _anything(rows, _RATES) else []
    figure, axes = plt.subplots(
        len(panels), 1, figsize=(8.5, 0.6 + 2.1 * len(panels)), layout="constrained", sharex=True
    )
    for panel, axis in zip(panels, axes, strict=True):
        panel(axis, rows)
    _stages(axes, rows)
    for step in rows.column("kept")[0][-1:]:
        for axis in axes:
            axis.axvline(step, color=COLOURS["kept"], linestyle=":", linewidth=1.2, label=short("kept"))
    for axis in axes:
        axis.legend(frameon=False, fontsize=9, loc="center left", bbox_to_anchor=(1.0, 0.5))
    axes[-1].set_xlabel(axis_label("steps"))
    figure.suptitle("History of the run", fontsize=12)
    return figure


def _stages(axes: Sequence[Axes], rows: History) -> None:
    """Marks where each stage of the run begins, with its name in the first panel; nothing for a single stage."""
    starts: dict[str, float] = {}
    end = 0.0
    for step, stage in zip(*rows.column("stage"), strict=True):
        starts.setdefault(stage, end)
        end = step
    if len(starts) < 2:
        return
    low, high = axes[0].get_ylim()
    axes[0].set_ylim(low, high * (high / low) ** 0.4)  # room for the names above the curves
    for i, (stage, start) in enumerate(starts.items()):
        for panel, axis in enumerate(axes):
            axis.axvline(start, color=FAINT, linewidth=0.8, zorder=0)
            if panel == 0:
                height = 1.0 - 0.09 * (i % 3)
                axis.text(
                    start, height, f" {stage}", transform=axis.get_xaxis_transform(), fontsize=8, va="top", color=INK
                )


def _losses(axis: Axes, rows: History) -> None:
    curves: list[tuple[str, str, dict[str, Any]]] = [
        ("loss", "training_loss", {}),
        ("eval_loss", "validation_loss", {"marker": "o", "markersize": 4}),
        ("penalty", "penalty", {"linestyle": "--"}),
    ]
    for key, quantity, style in curves:
        steps, values = rows.column(key)
        if steps and any(values):
            named = LABELS[quantity]
            axis.plot(steps, values, label=named.full or named.short, color=COLOURS[quantity], **style)
    axis.set_yscale("log")
    axis.set_ylabel(LABELS["loss"].unit)
    axis.set_title("Loss on the response tokens", fontsize=11)


def _open_gates(axis: Axes, rows: History) -> None:
    _pair(axis, rows, _OPEN, "number", "Open gates")


def _single_gates(axis: Axes, rows: History) -> None:
    steps, snapshots = rows.column("gates")
    for kind, style in (("offset", "-"), ("scale", "--")):
        values = numpy.asarray([[g for site in snapshot for g in site.get(kind, [])] for snapshot in snapshots])
        if values.size:
            count, label = values.shape[1], short(f"{kind}_gates")
            if count > _MOST_LINES:
                places = numpy.linspace(0, count - 1, _MOST_LINES).round().astype(int)
                values = values[:, numpy.argsort(values[-1], kind="stable")[places]]
                label += f", {_MOST_LINES} of {count:,}"
            lines = axis.plot(steps, values, color=COLOURS[kind], linestyle=style, linewidth=0.8, alpha=0.5)
            lines[0].set_label(label)
    axis.set_ylim(-0.03, 1.03)
    axis.set_ylabel("value")
    axis.set_title("Every single gate (0 closed, 1 open)", fontsize=11)


def _lambdas(axis: Axes, rows: History) -> None:
    _pair(axis, rows, _LAMBDAS, LABELS["lambda_offset"].unit, "Price of an open gate, λ")


def _rates(axis: Axes, rows: History) -> None:
    _pair(axis, rows, _RATES, "per step", "Learning rates")


def _pair(axis: Axes, rows: History, curves: Curves, unit: str, title: str) -> None:
    """Draws two logged quantities from 0 upwards, the second dashed."""
    for (key, named, drawn), style in zip(curves, ("-", "--"), strict=True):
        steps, values = rows.column(key)
        if steps:
            axis.plot(steps, values, label=short(named), color=COLOURS[drawn], linestyle=style)
    axis.set_ylim(bottom=0)
    axis.ticklabel_format(axis="y", style="sci", scilimits=(-2, 4))
    axis.set_ylabel(unit)
    axis.set_title(title, fontsize=11)


def _anything(rows: History, curves: Curves) -> bool:
    return any(value for key, *_ in curves for value in rows.column(key)[1])
