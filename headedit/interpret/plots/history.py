"""The history of a run: losses and penalty, open gates, every single gate, λ and learning rates, stage by stage."""

from collections.abc import Iterator, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, Protocol

import matplotlib.pyplot as plt
import numpy
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from headedit.errors import HeadEditError
from headedit.interpret.labels import LABELS, axis_label, short
from headedit.interpret.palette import COLOURS, FAINT
from headedit.interpret.plots.heading import Subtitle, put_heading
from headedit.interpret.plots.held_out import check_run, held_out_losses, record_of
from headedit.interpret.plots.stages import Stage, draw_strip, stages_of
from headedit.runs.history import History

Curves = tuple[tuple[str, str, str], tuple[str, str, str]]
"""(key in the history, quantity in the table of labels, quantity in the palette) of two curves."""

_OPEN: Curves = (("open_offset", "offset_gates", "offset"), ("open_scale", "scale_gates", "scale"))
_LAMBDAS: Curves = (("lambda_offset", "offset_gates", "offset"), ("lambda_scale", "scale_gates", "scale"))
_RATES: Curves = (
    ("learning_rate", "vector_rate", "vector_rate"),
    ("gate_learning_rate", "gate_rate", "gate_rate"),
)
_MOST_LINES = 200
_STRIP, _PANEL = 0.34, 2.0  # inches
_WIDTH = 8.5


class HasHistory(Protocol):
    """Anything with a history, such as the run that ``fit`` returns."""

    @property
    def history(self) -> History:
        """The logged steps."""


def history(
    run: "HasHistory | History | str | PathLike[str]", *, title: str | None = None, subtitle: Subtitle = True
) -> Figure:
    """Draws losses, penalty, open gates, λ and learning rates against the step.

    Args:
        run: what ``fit`` returned, a history, or the folder of a run.
        title: by default that it is the history of a run.
        subtitle: True for model, task and recipe; False for none; or a text.

    Returns:
        A figure with a strip that names the stages, where there are several, and up to five panels below it: the losses
        and the penalty in nats; the number of open gates; the value of every single gate, or of 200 spread evenly over
        their last values; λ in nats per gate, where it varies; and the learning rates of vectors and gates, where they
        were logged. Lines end where a stage ends, as each begins with edits of its own. Where the run's record has the
        loss on held-out examples, a diamond shows it, and a line that of the base model.

    Raises:
        HeadEditError: there is no history, or it has no logged step.
    """
    if isinstance(run, str | PathLike):
        rows = History.read(run)
    else:
        if not isinstance(run, History):
            check_run(run, "history")
        rows = run if isinstance(run, History) else run.history
    if not rows.column("loss")[0]:
        raise HeadEditError(f"{rows.path or 'The history'}: no step was logged, so there is nothing to draw.")
    record = record_of(run)
    stages = stages_of(rows)
    panels = [_losses, _open_gates, _single_gates]
    panels += [_lambdas] if _varies(rows, _LAMBDAS) else []
    panels += [_rates] if any(any(rows.column(key)[1]) for key, *_ in _RATES) else []
    heights = [_PANEL] * len(panels)
    if len(stages) > 1:
        heights = [_STRIP, *heights]
    figure, axes = plt.subplots(
        len(heights),
        1,
        figsize=(_WIDTH, 1.1 + sum(heights)),
        height_ratios=heights,
        layout="constrained",
        sharex=True,
        squeeze=False,
    )
    strip, drawn = axes[: len(heights) - len(panels), 0], axes[len(heights) - len(panels) :, 0]
    for panel, axis in zip(panels, drawn, strict=True):
        panel(axis, rows)
    _held_out(drawn[0], rows, record, stages)
    for step in rows.column("kept")[0][-1:]:
        for axis in drawn:
            axis.axvline(step, color=COLOURS["kept"], linestyle=":", linewidth=1.2, label=short("kept"))
    for stage in stages[1:]:
        for axis in drawn:
            axis.axvline(stage.start, color=FAINT, linewidth=0.8, zorder=0)
    for axis in strip:
        draw_strip(axis, stages)
    handles = dict(_handles(list(drawn)))
    figure.legend(handles.values(), handles, loc="outside lower center", frameon=False, fontsize=8, ncols=3)
    drawn[-1].set_xlabel(axis_label("steps"))
    put_heading(figure, "History of the run" if title is None else title, subtitle, [_named(run, rows)])
    return figure


def _named(run: Any, rows: History) -> Any:
    """What the subtitle is read from: the run, or the folder of its history."""
    if isinstance(run, str | PathLike):
        return run if Path(run).is_dir() else Path(run).parent
    return rows.path.parent if isinstance(run, History) and rows.path is not None else run


def _handles(axes: Sequence[Axes]) -> Iterator[tuple[str, Any]]:
    """A label and handle for every curve; the same label in several panels means the same."""
    for axis in axes:
        for handle, name in zip(*axis.get_legend_handles_labels(), strict=True):
            yield name, handle


def _column(rows: History, key: str) -> tuple[list[float], list[Any]]:
    """Steps and values of a key, with a None between stages, at which a line ends."""
    steps: list[float] = []
    values: list[Any] = []
    before = None
    for row in rows.rows:
        if key in row:
            if steps and row.get("stage") != before:
                steps.append(row["step"])
                values.append(None)
            before = row.get("stage")
            steps.append(row["step"])
            values.append(row[key])
    return steps, values


def _curve(axis: Axes, rows: History, key: str, *, positive: bool = False, **style: Any) -> None:
    """Draws a logged quantity, stage by stage; of a stage with a single value, a dot."""
    steps, values = _column(rows, key)
    known = numpy.asarray([numpy.nan if value is None else value for value in values], dtype=float)
    if positive:
        known[~(known > 0)] = numpy.nan
    if numpy.isnan(known).all():
        return
    if "marker" not in style:
        style |= _dots(known)
    axis.plot(steps, known, **style)


def _dots(values: NDArray[numpy.floating[Any]]) -> dict[str, Any]:
    """A style that shows the values without a neighbour as dots."""
    there = numpy.concatenate([[False], ~numpy.isnan(values), [False]])
    alone = numpy.flatnonzero(there[1:-1] & ~there[:-2] & ~there[2:])
    return {"marker": "o", "markersize": 3, "markevery": alone.tolist()} if len(alone) else {}


def _losses(axis: Axes, rows: History) -> None:
    curves: list[tuple[str, str, dict[str, Any]]] = [
        ("loss", "training_loss", {}),
        ("eval_loss", "validation_loss", {"marker": "o", "markersize": 4}),
        ("penalty", "penalty", {"linestyle": "--"}),
    ]
    for key, quantity, style in curves:
        name = LABELS[quantity].full or LABELS[quantity].short
        if quantity == "penalty":
            name += _constant_price(rows)
        _curve(axis, rows, key, positive=True, label=name, color=COLOURS[quantity], **style)
    axis.set_yscale("log")
    axis.set_ylabel(LABELS["loss"].unit)
    axis.set_title("Loss on the response tokens", fontsize=11)


def _constant_price(rows: History) -> str:
    """The λ of a run that does not vary it, for the legend; empty where it varies."""
    if _varies(rows, _LAMBDAS):
        return ""
    prices = [next((value for value in rows.column(key)[1] if value), None) for key, *_ in _LAMBDAS]
    known = list(dict.fromkeys(f"{price:g}" for price in prices if price))
    return f",  λ = {' and '.join(known)} {LABELS['lambda_offset'].unit}" if known else ""


def _held_out(axis: Axes, rows: History, record: Mapping[str, Any], stages: Sequence[Stage]) -> None:
    """Draws the loss on held-out examples that the record has, of the kept edits and of the base model."""
    found = held_out_losses(record)
    if found is None:
        return
    axis.axhline(
        found.base,
        color=COLOURS["validation_loss"],
        linestyle=":",
        linewidth=1.4,
        label=LABELS["base_loss"].full,
    )
    searches = [stage for stage in stages if stage.name.startswith("search")]
    kept = rows.column("kept")[0][-1:]
    end = kept[0] if kept and kept[0] > 0 else max(rows.column("loss")[0])
    if not record.get("valid_examples") and searches:
        end = searches[-1].end  # a recipe that holds examples out measures what its search chose
    style: dict[str, Any] = {"marker": "D", "markersize": 6, "linestyle": "", "zorder": 3}
    name = f"{short('validation_loss')} of the chosen edits"
    axis.plot([end], [found.edited], color=COLOURS["validation_loss"], label=name, **style)


def _open_gates(axis: Axes, rows: History) -> None:
    _pair(axis, rows, _OPEN, "number", "Open gates")


def _single_gates(axis: Axes, rows: History) -> None:
    steps, snapshots = _column(rows, "gates")
    parts: list[str] = []
    for kind, style in (("offset", "-"), ("scale", "--")):
        found = [None if s is None else [g for site in s for g in site.get(kind, [])] for s in snapshots]
        count = len(next((row for row in found if row is not None), []))
        if not count:
            continue
        values = numpy.asarray([[numpy.nan] * count if row is None else row for row in found], dtype=float)
        if count > _MOST_LINES:
            places = numpy.linspace(0, count - 1, _MOST_LINES).round().astype(int)
            values = values[:, numpy.argsort(values[-1], kind="stable")[places]]
            parts.append(f"{_MOST_LINES} of {count:,} {short(f'{kind}_gates')}")
        axis.plot(steps, values, color=COLOURS[kind], linestyle=style, linewidth=0.8, alpha=0.5, **_dots(values[:, 0]))
    axis.set_ylim(-0.03, 1.03)
    axis.set_ylabel("value")
    name = f"Single gates, {' and '.join(parts)}" if parts else "Every single gate"
    axis.set_title(f"{name}  (0 closed, 1 open)", fontsize=11)


def _lambdas(axis: Axes, rows: History) -> None:
    _pair(axis, rows, _LAMBDAS, LABELS["lambda_offset"].unit, "Price of an open gate, λ")


def _rates(axis: Axes, rows: History) -> None:
    _pair(axis, rows, _RATES, "rate", "Learning rates", "learning rate of the ")


def _pair(axis: Axes, rows: History, curves: Curves, unit: str, title: str, before: str = "") -> None:
    """Draws two logged quantities from 0 upwards, the second dashed."""
    for (key, named, drawn), style in zip(curves, ("-", "--"), strict=True):
        _curve(axis, rows, key, label=f"{before}{short(named)}", color=COLOURS[drawn], linestyle=style)
    axis.set_ylim(bottom=0)
    axis.ticklabel_format(axis="y", style="sci", scilimits=(-2, 4))
    axis.set_ylabel(unit)
    axis.set_title(title, fontsize=11)


def _varies(rows: History, curves: Curves) -> bool:
    """Whether a quantity has two different values other than 0 and None."""
    return any(len({value for value in rows.column(key)[1] if value}) > 1 for key, *_ in curves)
