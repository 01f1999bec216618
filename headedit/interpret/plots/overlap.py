"""How many heads every two edits share: the Jaccard index, next to what chance gives."""

from collections.abc import Mapping
from itertools import combinations
from typing import Any

import numpy
from matplotlib.axes import Axes
from matplotlib.transforms import ScaledTranslation
from numpy.typing import NDArray

from headedit.interpret.palette import COLOURS, GRID, INK
from headedit.interpret.plots.heatmap import Grid
from headedit.runs.stability import expected_jaccard, jaccard

_MOST_PAIRS = 15
_ROW = 0.26  # inches
_BELOW = 0.45  # inches for the numbers and the name of an axis
_NAME = 16  # letters of a name at most


def height_of_overlap(edits: int) -> float:
    """Inches that the panel of so many edits needs."""
    pairs = edits * (edits - 1) // 2
    return 1.6 + _ROW * (pairs if pairs <= _MOST_PAIRS else edits)


def draw_overlap(axis: Axes, grids: Mapping[str, Grid]) -> None:
    """Draws the Jaccard index of every pair as a dot and that of chance as a line; of many edits a table of the index.

    Args:
        axis: to draw into.
        grids: by name, above 0 where a head is edited, NaN where there is none, [layers, heads].
    """
    sets = [_chosen(grid) for grid in grids.values()]
    total = int(numpy.any([~numpy.isnan(grid) for grid in grids.values()], axis=0).sum())
    pairs = list(combinations(range(len(sets)), 2))
    found = [jaccard(sets[i], sets[j]) for i, j in pairs]
    chance = [expected_jaccard(len(sets[i]), len(sets[j]), total) for i, j in pairs]
    names = [short_name(name) for name in grids]
    if len(pairs) > _MOST_PAIRS:
        _table(axis, names, dict(zip(pairs, found, strict=True)), chance)
        return
    places = range(len(pairs))
    axis.hlines(places, 0, 1, color=GRID, linewidth=0.8, zorder=0)
    style: dict[str, Any] = {"linestyle": "", "zorder": 3}
    axis.plot(found, places, color=COLOURS["jaccard"], marker="o", markersize=7, label="these edits", **style)
    axis.plot(
        chance,
        places,
        color=COLOURS["reference"],
        marker="|",
        markersize=14,
        markeredgewidth=2,
        label="chance",
        **style,
    )
    columns = ((1.15, "index", found), (1.32, "chance", chance))
    for x, name, values in columns:
        axis.text(x, -0.8, name, ha="right", va="bottom", fontsize=8, color=INK)
        for place, value in zip(places, values, strict=True):
            axis.text(x, place, f"{value:.2f}", ha="right", va="center", fontsize=8)
    axis.set_yticks(places, [f"{names[i]} – {names[j]}" for i, j in pairs], fontsize=8)
    axis.set_ylim(len(pairs) - 0.3, -0.7)
    axis.set_xlim(-0.03, 1.03)
    axis.set_xticks([0, 0.5, 1])
    axis.set_xlabel("Jaccard index of the heads", fontsize=9)
    axis.set_title("Heads in common\n", fontsize=10)
    axis.spines[["top", "right", "left"]].set_visible(False)
    axis.tick_params(axis="y", length=0)
    figure = axis.get_figure(root=True)
    assert figure is not None
    below = axis.transAxes + ScaledTranslation(0, -_BELOW, figure.dpi_scale_trans)
    axis.legend(loc="upper center", bbox_to_anchor=(0.5, 0), bbox_transform=below, frameon=False, fontsize=8, ncols=2)


def short_name(name: str) -> str:
    """A name of some edits, cut where it is long."""
    return name if len(name) <= _NAME else f"{name[: _NAME - 1]}…"


def _table(axis: Axes, names: list[str], found: Mapping[tuple[int, int], float], chance: list[float]) -> None:
    """The index of every pair as a number, below the diagonal, with the range of chance in the title."""
    count = len(names)
    axis.set_xlim(-0.5, count - 0.5)
    axis.set_ylim(count - 0.5, -0.5)
    for (i, j), value in found.items():
        axis.text(i, j, f"{value:.2f}", ha="center", va="center", fontsize=min(9.0, 60 / count), color=INK)
    axis.set_xticks(range(count), names, rotation=35, ha="right", rotation_mode="anchor", fontsize=8)
    axis.set_yticks(range(count), names, fontsize=8)
    axis.spines[["top", "right"]].set_visible(False)
    low, high = f"{min(chance):.2f}", f"{max(chance):.2f}"
    by = low if low == high else f"{low} to {high}"
    axis.set_title(f"Heads in common: Jaccard index\n(by chance {by})", fontsize=10)


def _chosen(grid: Grid) -> set[tuple[int, int]]:
    heads: NDArray[numpy.intp] = numpy.argwhere(grid > 0)
    return {(int(layer), int(head)) for layer, head in heads}
