"""Loss or score against the number of parameters: along the pruning path of a run, or of methods that were compared."""

import math
from collections.abc import Mapping, Sequence
from numbers import Real
from os import PathLike
from typing import Any, Protocol

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from headedit.errors import HeadEditError
from headedit.interpret.labels import axis_label
from headedit.interpret.palette import GRID, OTHER_METHOD, STYLES
from headedit.interpret.plots.heading import Subtitle, put_heading
from headedit.interpret.plots.path import (
    HasPath,
    draw_losses,
    draw_references,
    loss_axis,
    mark_kept,
    put_legend,
    read_levels,
)
from headedit.io.describe import describe
from headedit.runs.pruning_path import Level, PruningPath

Row = Mapping[str, Any]

_WIDTH = 9.0
_SCORES = ("score", "exact_match", "accuracy")
_KEYS = {"method", "parameters"}


class HasSummary(Protocol):
    """Anything with lines of methods, such as what ``headedit.compare`` returns."""

    @property
    def summary(self) -> Sequence[Row]:
        """A line per method, with ``method``, ``parameters`` and ``score``."""


def parameters(
    source: "HasPath | PruningPath | HasSummary | Sequence[Row] | str | PathLike[str]",
    *,
    others: Mapping[str, tuple[int, float]] | None = None,
    title: str | None = None,
    subtitle: Subtitle = True,
) -> Figure:
    """Draws how good edits are by the number of their parameters, next to LoRA and other methods where these were run.

    >>> figure = headedit.plot.parameters(run, others={"LoRA": (294_912, 0.31)})  # doctest: +SKIP

    Args:
        source: a run, its folder or a pruning path, for the validation loss at every number of parameters; or what
            ``headedit.compare`` returned, or the lines of its ``summary``, for the score of every method.
        others: for a run, other methods by name: number of parameters, and validation loss in nats per token on the
            same examples. One without parameters is a dotted line.
        title: by default what is drawn.
        subtitle: True for model, task and recipe; False for none; or a text.

    Returns:
        A figure whose horizontal axis is logarithmic: of a run one panel, as ``headedit.plot.path`` draws it; of a
        comparison a panel per task, from the task's largest number of examples, with bars of 95 %.

    Raises:
        HeadEditError: the path has no validation losses, the comparison has no scores, there is no such run, or
            another method is not a pair of numbers.
    """
    lines = source if isinstance(source, Sequence) and not isinstance(source, str) else getattr(source, "summary", None)
    if lines is not None:
        if others is not None:
            raise HeadEditError("others: a comparison has its own methods; add a line to its summary for another one.")
        return scores_by_parameters(lines, title=title, subtitle=subtitle)
    found, levels = read_levels(source)  # type: ignore[arg-type]
    sizes = [_size(level) for level in levels]
    figure, axis = plt.subplots(figsize=(8.5, 4.4), layout="constrained")
    draw_losses(axis, sizes, levels)
    kept = found.level_of(found.chosen)
    mark_kept(axis, _size(kept), kept.loss, f"kept: {_size(kept):,} parameters on {kept.heads} heads")
    refits = [(_size(found.level_of(gates)), loss) for gates, loss in found.refits.items() if gates <= _most(found)]
    draw_references(axis, refits, found.base_loss)
    for name, (count, loss) in _pairs(others):
        colour, marker = STYLES.get(name, (OTHER_METHOD, "X"))
        if not count:  # has no place on a logarithmic axis
            axis.axhline(loss, color=colour, linestyle=":", linewidth=1.2, label=name)
            continue
        axis.plot([count], [loss], color=colour, marker=marker, markersize=9, linestyle="", label=name, zorder=4)
    axis.set_xscale("log")
    loss_axis(axis)
    axis.set_xlabel(axis_label("parameters"))
    put_legend(figure, axis)
    put_heading(figure, "Validation loss by the number of parameters" if title is None else title, subtitle, [source])
    return figure


def _pairs(others: Any) -> list[tuple[str, tuple[float, float]]]:
    """Other methods by name, each with its number of parameters and its loss."""
    found = list(others.items()) if isinstance(others, Mapping) else [] if others is None else [("others", others)]
    for name, given in found:
        pair = given if isinstance(given, list | tuple) else ()
        if len(pair) != 2 or not all(isinstance(value, Real) and math.isfinite(value) for value in pair):
            raise HeadEditError(
                f"others: found {describe(given)} for {name!r}, expected the number of parameters and the loss, such "
                "as {'LoRA': (294_912, 0.31)}."
            )
        if pair[0] < 0:
            raise HeadEditError(f"others: found {pair[0]} parameters for {name!r}, expected 0 or more.")
    return found


def scores_by_parameters(summary: Sequence[Row], *, title: str | None = None, subtitle: Subtitle = False) -> Figure:
    """Draws the score of every method that learns by the number of its parameters, a panel per task, largest size.

    Args:
        summary: lines of a comparison, per task, size and method.
        title: by default what is drawn.
        subtitle: a text to put below the title.

    Raises:
        HeadEditError: no line has a method, its parameters and its score.
    """
    lines = [
        dict(line, score=score) for line in summary if line.keys() >= _KEYS and (score := _score(line)) is not None
    ]
    if not lines:
        raise HeadEditError("There is nothing to draw: no line has a method, its number of parameters and its score.")
    largest: dict[str, int] = {}
    for line in lines:
        task = str(line.get("task", ""))
        largest[task] = max(largest.get(task, 0), line.get("size") or 0)
    lines = [line for line in lines if (line.get("size") or 0) == largest[str(line.get("task", ""))]]
    names, sizes = list(largest), set(largest.values())
    across = min(3, len(names))
    down = math.ceil(len(names) / across)
    figure, axes = plt.subplots(
        down, across, figsize=(_WIDTH, 1.6 + 3.2 * down), layout="constrained", sharey=True, squeeze=False
    )
    for axis in axes.flat[len(names) :]:
        axis.set_axis_off()
    for axis, task in zip(axes.flat, names, strict=False):
        _scores(axis, [line for line in lines if str(line.get("task", "")) == task])
        axis.set_title(task if len(sizes) == 1 else f"{task}, from {largest[task]} examples", fontsize=11)
    metrics = list(dict.fromkeys(line.get("metric") for line in lines))
    for axis in axes[:, 0]:
        axis.set_ylabel(metrics[0] if len(metrics) == 1 and metrics[0] else axis_label("score"))
    entries: dict[str, Any] = {}
    for axis in axes.flat[: len(names)]:
        for handle, name in zip(*axis.get_legend_handles_labels(), strict=True):
            entries.setdefault(name, handle)
    figure.legend(list(entries.values()), list(entries), loc="outside lower center", ncols=6, frameon=False, fontsize=9)
    size = f", from {max(sizes)} examples" if len(sizes) == 1 and max(sizes) else ""
    bars = " (bars: 95 % interval)" if any("score_low" in line for line in lines) else ""
    put_heading(figure, f"Score by the number of parameters{size}{bars}" if title is None else title, subtitle)
    return figure


def _scores(axis: Axes, lines: Sequence[Row]) -> None:
    for line in lines:
        name = line["method"]
        colour, marker = STYLES.get(name, (OTHER_METHOD, "X"))
        if not line["parameters"]:
            axis.axhline(line["score"], color=colour, linestyle=":", linewidth=1.2, label=name)
            continue
        low, high = line.get("score_low"), line.get("score_high")
        ends = None if low is None or high is None else [[line["score"] - low], [high - line["score"]]]
        axis.errorbar(
            line["parameters"], line["score"], yerr=ends, color=colour, marker=marker, markersize=7, linestyle="",
            elinewidth=0.6, label=name,
        )  # fmt: skip
    axis.set_xscale("log")
    axis.set_xlabel(axis_label("parameters"))
    axis.grid(color=GRID, linewidth=0.6)
    axis.set_axisbelow(True)


def _score(line: Row) -> float | None:
    return next((float(line[key]) for key in _SCORES if line.get(key) is not None), None)


def _size(level: Level) -> int:
    """Number of values in the vectors of a level's open gates."""
    return sum(rows.numel() for rows in level.vectors.values())


def _most(path: PruningPath) -> int:
    """The largest number of gates of a path."""
    return max(level.gates for level in path.levels)
