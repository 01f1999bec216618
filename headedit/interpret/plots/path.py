"""The pruning path: validation loss against the number of open gates, and the number that was kept."""

from collections.abc import Sequence
from dataclasses import replace
from math import nan
from os import PathLike
from typing import Any, Protocol

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter, NullLocator

from headedit.errors import HeadEditError
from headedit.interpret.labels import LABELS, axis_label, label, short
from headedit.interpret.palette import COLOURS
from headedit.interpret.plots.heading import Subtitle, put_heading
from headedit.interpret.plots.held_out import check_run, held_out_losses, record_of
from headedit.runs.pruning_path import Level, PruningPath

_LEAST_RATIO = 1.25
"""Of neighbouring ticks on a logarithmic axis, so that their numbers do not touch."""


class HasPath(Protocol):
    """Anything with a pruning path, such as the run that ``fit`` returns."""

    @property
    def path(self) -> PruningPath:
        """The levels of the search."""


def path(
    run: "HasPath | PruningPath | str | PathLike[str]", *, title: str | None = None, subtitle: Subtitle = True
) -> Figure:
    """Draws the validation loss against the number of open gates, along the pruning path.

    Args:
        run: what ``fit`` returned, a path, or the folder of a run with the recipe ``localise``.
        title: by default that it is a pruning path, and what was kept.
        subtitle: True for model, task and recipe; False for none; or a text.

    Returns:
        A figure: the loss in nats per token, with bars of the standard error of its difference from the best level; a
        diamond at the level that was kept; and, where they are recorded, a line at the loss of the base model, and
        squares at the losses of the refits that checked the choice. Both axes are logarithmic; the upper one counts
        heads.

    Raises:
        HeadEditError: there is no path, or it was not measured on validation examples.
    """
    found, levels = read_levels(run)
    heads_at = {level.gates: level.heads for level in levels}
    gates = list(heads_at)
    figure, axis = plt.subplots(figsize=(8.5, 4.4), layout="constrained")
    draw_losses(axis, gates, levels)
    kept = found.level_of(found.chosen)
    heads_at[found.chosen] = kept.heads
    mark_kept(axis, found.chosen, kept.loss, f"kept: {found.chosen} gates on {kept.heads} heads")
    draw_references(axis, [(size, loss) for size, loss in found.refits.items()], found.base_loss)
    axis.set_xscale("log")
    ticks = _spaced(gates, found.chosen)
    axis.set_xticks(ticks, [str(tick) for tick in ticks])
    axis.xaxis.set_minor_locator(NullLocator())
    loss_axis(axis)
    axis.set_xlabel(axis_label("gates"))
    upper = axis.secondary_xaxis("top")
    heads = _first_of_each({tick: heads_at[tick] for tick in ticks})
    upper.set_xticks(list(heads), [str(number) for number in heads.values()])
    upper.xaxis.set_minor_locator(NullLocator())
    upper.set_xlabel(axis_label("heads"))
    put_legend(figure, axis)
    put_heading(figure, "Pruning path" if title is None else title, subtitle, [run])
    return figure


def read_levels(run: "HasPath | PruningPath | str | PathLike[str]") -> tuple[PruningPath, list[Level]]:
    """The path of a run, with the loss of the base model where the run's record has it, and its levels with a loss.

    Raises:
        HeadEditError: there is no path, or no level has a loss.
    """
    if isinstance(run, str | PathLike):
        found = PruningPath.read(run)
    else:
        if not isinstance(run, PruningPath):
            check_run(run, "path")
        found = run if isinstance(run, PruningPath) else run.path
    if found.base_loss is None and (losses := held_out_losses(record_of(run))) is not None:
        found = replace(found, base_loss=losses.base)
    levels = [level for level in found.levels if level.loss is not None]
    if not levels:
        raise HeadEditError("The pruning path has no validation losses, so there is nothing to draw.")
    return found, levels


def draw_losses(axis: Axes, places: Sequence[int], levels: Sequence[Level]) -> None:
    """The loss of every level at its place, with its standard error."""
    axis.errorbar(
        places,
        [level.loss or 0.0 for level in levels],
        yerr=[level.standard_error or 0.0 for level in levels],
        color=COLOURS["validation_loss"],
        marker="o",
        markersize=4,
        linewidth=1.2,
        elinewidth=0.8,
        label=f"{short('validation_loss')} in the search ± standard error of the difference from the best",
    )


def mark_kept(axis: Axes, place: int, loss: float | None, name: str) -> None:
    """A line at what was kept, and a diamond on the curve."""
    axis.axvline(place, color=COLOURS["kept"], linestyle=":", linewidth=1.2, zorder=0)
    style: dict[str, Any] = {"marker": "D", "markersize": 8, "markeredgecolor": "white", "zorder": 4}
    axis.plot(
        [place],
        [nan if loss is None else loss],
        color=COLOURS["kept"],
        linestyle=":",
        linewidth=1.2,
        label=name,
        **style,
    )


def draw_references(axis: Axes, refits: Sequence[tuple[int, float]], base: float | None) -> None:
    """The losses of refits at their places, and a line at the loss of the base model, where they are known."""
    if refits:
        places, losses = zip(*sorted(refits), strict=True)
        style: dict[str, Any] = {"marker": "s", "markersize": 7, "markerfacecolor": "none", "markeredgewidth": 1.6}
        axis.plot(
            places, losses, color=COLOURS["refit"], label=LABELS["refit_loss"].full, linestyle="", zorder=3, **style
        )
    if base is not None:
        axis.axhline(base, color=COLOURS["reference"], linestyle="--", linewidth=1.2, label=LABELS["base_loss"].full)


def loss_axis(axis: Axes) -> None:
    """A logarithmic axis with plain numbers; to be called when everything is drawn."""
    axis.set_yscale("log")
    low, high = axis.get_ylim()
    plain = FuncFormatter(lambda value, _: f"{value:g}")
    axis.yaxis.set_major_formatter(plain)
    few = FuncFormatter(lambda value, _: f"{value:g}" if f"{value:e}"[0] in "25" else "")
    axis.yaxis.set_minor_formatter(plain if high < 10 * low else few if high < 300 * low else NullFormatter())
    axis.set_ylabel(label("validation_loss"))


def put_legend(figure: Figure, axis: Axes) -> None:
    """The legend below the axes, where it hides no point."""
    handles, names = axis.get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", frameon=False, fontsize=9, ncols=2)


def _spaced(gates: Sequence[int], kept: int) -> list[int]:
    """Numbers to write below a logarithmic axis, far enough from each other; that of the kept level is one."""
    found = [kept]
    for number in gates:
        if all(max(number, other) >= _LEAST_RATIO * min(number, other) for other in found):
            found.append(number)
    return sorted(found, reverse=True)


def _first_of_each(heads: dict[int, int]) -> dict[int, int]:
    """By number of gates the number of heads, each number once, where it is reached with the fewest gates."""
    return {gates: number for number, gates in {number: gates for gates, number in heads.items()}.items()}
