"""The comparison of several edits: which heads each has, how much they share, and where they differ."""

import math
from collections.abc import Mapping
from itertools import combinations
from typing import Any

import matplotlib.pyplot as plt
import numpy
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import BoundaryNorm, ListedColormap, Normalize, to_hex
from matplotlib.figure import Figure, SubFigure
from matplotlib.patches import Patch
from numpy.typing import NDArray

from headedit.errors import HeadEditError
from headedit.interpret.head_map import Edits, HeadMap
from headedit.interpret.palette import COLOURS, EDGE, FAINT, GRID, SEQUENTIAL
from headedit.interpret.plots.heatmap import Grid, draw, mark_missing
from headedit.interpret.plots.types import draw_types, type_grid, type_handles
from headedit.runs.stability import expected_jaccard, jaccard

_WIDTH = 8.0  # inches
_NAME = 16  # letters of a name at most
_LEAST_ROWS = 1.1  # inches of a small map's height
_SETS = ("neither_set", "first_set", "second_set", "both_sets")


def compare(edits: Mapping[str, Edits], *, kind: str | None = None, title: str | None = None) -> Figure:
    """Draws which heads several edits of the same model have; a head counts if a gate on it is open.

    Args:
        edits: a name for each; handles, parameters or folders of saved edits, two or more.
        kind: the kind of site; by default attention, or else the first kind of the first edits.
        title: by default which kind is shown.

    Returns:
        A figure: a small type map for each; a matrix with the Jaccard index |A ∩ B| / |A ∪ B| of each pair above the
        diagonal, the index of random sets of the same sizes below it, and numbers of heads on it; and a map of
        the differences: for two edits the heads of either and of both, for more the number of edits that have a head.

    Raises:
        HeadEditError: there are fewer than two, their heads differ in number or kind, or a folder holds no edits.
    """
    if not isinstance(edits, Mapping) or len(edits) < 2:
        raise HeadEditError("compare: give two edits or more by name, such as {'arc': edits, 'boolq': 'out/boolq'}.")
    sources = {str(name): HeadMap.of(each) for name, each in edits.items()}
    kind = next(iter(sources.values())).module.kinds()[0] if kind is None else kind
    grids = {name: type_grid(source, source.shown_kinds(kind)[0]) for name, source in sources.items()}
    _check_same_heads(grids, kind)
    layers, _ = next(iter(grids.values())).shape
    across = min(4, len(grids))
    down = math.ceil(len(grids) / across)
    small = min(2.6, max(_LEAST_ROWS, layers * 0.08))
    heights = (down * (small + 0.6) + 0.6, max(3.4, min(4.2, layers * 0.1)))
    figure = plt.figure(figsize=(_WIDTH, sum(heights) + 0.4), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=heights, squeeze=False).flat
    _maps(above, grids, down, across)
    left, right = below.subplots(1, 2, width_ratios=(1, 1.15))
    _matrix(left, grids)
    _differences(right, grids)
    figure.suptitle(f"Edits of {kind} heads compared" if title is None else title, fontsize=12)
    return figure


def _check_same_heads(grids: Mapping[str, Grid], kind: str) -> None:
    first, *others = grids
    for name in others:
        here, there = (
            f"{grid.shape[0]} layers of {grid.shape[1]} {kind} heads" for grid in (grids[name], grids[first])
        )
        if here != there:
            raise HeadEditError(f"compare: '{name}' has {here}, but '{first}' has {there}; compare edits of one model.")


def _maps(figure: SubFigure, grids: Mapping[str, Grid], down: int, across: int) -> None:
    axes = figure.subplots(down, across, sharex=True, sharey=True, squeeze=False)
    for axis, (name, grid) in zip(axes.flat, grids.items(), strict=False):
        draw_types(axis, grid)
        axis.tick_params(labelsize=8)
        axis.set_title(f"{_short(name)}:  {len(_chosen(grid)):,} heads", fontsize=8)
    for axis in axes.flat[len(grids) :]:
        axis.set_axis_off()
    for column in range(across):
        last = axes[(len(grids) - 1 - column) // across, column]
        last.set_xlabel("head", fontsize=9)
        last.tick_params(labelbottom=True)
    for axis in axes[:, 0]:
        axis.set_ylabel("layer", fontsize=9)
    handles = type_handles() + mark_missing(list(grids.values()))
    figure.legend(handles=handles, loc="outside lower center", frameon=False, fontsize=9, ncols=len(handles))


def _matrix(axis: Axes, grids: Mapping[str, Grid]) -> None:
    sets = [_chosen(grid) for grid in grids.values()]
    total = int(numpy.any([~numpy.isnan(grid) for grid in grids.values()], axis=0).sum())
    count = len(sets)
    values = numpy.full((count, count), numpy.nan)
    for i, j in combinations(range(count), 2):
        values[i, j] = jaccard(sets[i], sets[j])
        values[j, i] = expected_jaccard(len(sets[i]), len(sets[j]), total)
    axis.set_facecolor(GRID)
    axis.imshow(values, cmap=SEQUENTIAL, norm=Normalize(0, 1))
    for i, j in numpy.ndindex(count, count):
        text = f"{len(sets[i]):,}" if i == j else f"{values[i, j]:.2f}"
        light = i != j and values[i, j] < 0.6
        size = min(10.0, 60 / count)
        axis.text(j, i, text, ha="center", va="center", fontsize=size, color="white" if light else "black")
    names = [_short(name) for name in grids]
    axis.set_xticks(range(count), names, rotation=35, ha="right", rotation_mode="anchor", fontsize=8)
    axis.set_yticks(range(count), names, fontsize=8)
    axis.set_title("Jaccard index above the diagonal,\nby chance below, heads on it", fontsize=10)


def _differences(axis: Axes, grids: Mapping[str, Grid]) -> None:
    chosen = numpy.stack([grid > 0 for grid in grids.values()])  # [edits, layers, heads]
    missing = numpy.all([numpy.isnan(grid) for grid in grids.values()], axis=0)
    names = [_short(name) for name in grids]
    if len(names) == 2:
        values, colours = chosen[0] + 2.0 * chosen[1], [COLOURS[name] for name in _SETS]
        labels = ["neither", f"only {names[0]}", f"only {names[1]}", "both"]
        axis.set_title("Where they differ", fontsize=10)
    else:
        values = chosen.sum(0).astype(float)
        colours = [to_hex(colormaps[SEQUENTIAL](i / len(names))) for i in range(len(names) + 1)]
        labels = [f"{i} of {len(names)}" for i in range(len(names) + 1)]
        axis.set_title("How many edits have each head", fontsize=10)
    norm = BoundaryNorm([i - 0.5 for i in range(len(labels) + 1)], len(labels))
    draw(axis, numpy.where(missing, numpy.nan, values), colours=ListedColormap(colours), norm=norm)
    if len(axis.get_xticks(minor=True)):
        axis.grid(which="minor", color=FAINT, linewidth=0.6)
    axis.set_xlabel("head")
    axis.set_ylabel("layer")
    handles = [
        Patch(facecolor=colour, edgecolor=EDGE, label=f"{label}: {int((values[~missing] == i).sum()):,}")
        for i, (colour, label) in enumerate(zip(colours, labels, strict=True))
    ]
    axis.legend(
        handles=handles,
        loc="upper center",
        bbox_to_anchor=(0.5, -0.2),
        frameon=False,
        fontsize=8,
        ncols=2 if len(handles) < 7 else 3,
    )


def _chosen(grid: Grid) -> set[Any]:
    heads: NDArray[numpy.intp] = numpy.argwhere(grid > 0)
    return set(map(tuple, heads.tolist()))


def _short(name: str) -> str:
    return name if len(name) <= _NAME else f"{name[: _NAME - 1]}…"
