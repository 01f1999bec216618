"""The pruning path: validation loss against the number of open gates, and the number that was kept."""

from os import PathLike
from typing import Protocol

import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from headedit.errors import HeadEditError
from headedit.interpret.labels import axis_label, label, short
from headedit.interpret.palette import COLOURS
from headedit.runs.pruning_path import PruningPath


class HasPath(Protocol):
    """Anything with a pruning path, such as the run that ``fit`` returns."""

    @property
    def path(self) -> PruningPath:
        """The levels of the search."""


def path(run: "HasPath | PruningPath | str | PathLike[str]") -> Figure:
    """Draws the validation loss against the number of open gates, along the pruning path.

    Args:
        run: what ``fit`` returned, a path, or the folder of a run with the recipe ``localise``.

    Returns:
        A figure: the loss in nats per token on a logarithmic axis, with the standard error of its difference from the
        best level; a line at the number of gates that was kept. The upper axis counts heads.

    Raises:
        HeadEditError: there is no path, or it was not measured on validation examples.
    """
    if isinstance(run, str | PathLike):
        found = PruningPath.read(run)
    else:
        found = run if isinstance(run, PruningPath) else run.path
    levels = [level for level in found.levels if level.loss is not None]
    if not levels:
        raise HeadEditError("The pruning path has no validation losses, so there is nothing to draw.")
    gates = [level.gates for level in levels]
    losses = [level.loss or 0.0 for level in levels]
    figure, axis = plt.subplots(figsize=(8.5, 4.0), layout="constrained")
    axis.errorbar(
        gates,
        losses,
        yerr=[level.standard_error or 0.0 for level in levels],
        color=COLOURS["validation_loss"],
        marker="o",
        markersize=4,
        linewidth=1.2,
        capsize=2,
        label=f"{short('validation_loss')} ± standard error of the difference from the best",
    )
    kept = found.level_of(found.chosen)
    axis.axvline(
        found.chosen,
        color=COLOURS["kept"],
        linestyle=":",
        label=f"kept: {found.chosen} gates on {kept.heads} heads",
    )
    axis.set_xscale("log")
    axis.set_yscale("log")
    plain = FuncFormatter(lambda value, _: f"{value:g}")
    ticks = [gates[i] for i in _spaced(gates)]
    axis.set_xticks(ticks, [str(tick) for tick in ticks])
    axis.set_xticks([], minor=True)
    axis.yaxis.set_major_formatter(plain)
    axis.yaxis.set_minor_formatter(plain if max(losses) < 10 * min(losses) else FuncFormatter(lambda value, _: ""))
    axis.set_xlabel(axis_label("gates"))
    axis.set_ylabel(label("validation_loss"))
    upper = axis.secondary_xaxis("top")
    upper.set_xticks(ticks, [str(levels[gates.index(tick)].heads) for tick in ticks])
    upper.set_xticks([], minor=True)
    upper.set_xlabel(axis_label("heads"))
    axis.legend(frameon=False, fontsize=9)
    figure.suptitle("Pruning path", fontsize=12)
    return figure


def _spaced(gates: list[int]) -> list[int]:
    """Indices of ticks, each at least a sixth below the one before, so that they do not overlap."""
    kept = [0]
    for i, number in enumerate(gates):
        if number <= gates[kept[-1]] / 1.2:
            kept.append(i)
    return kept
