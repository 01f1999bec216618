"""The comparison of several edits: which heads each has, how much they share, and where they differ."""

import math
from collections.abc import Mapping
from typing import Any

import matplotlib.pyplot as plt
import numpy
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import BoundaryNorm, ListedColormap, to_hex
from matplotlib.figure import Figure, SubFigure
from matplotlib.patches import Patch

from headedit.errors import HeadEditError
from headedit.interpret.head_map import Edits, HeadMap
from headedit.interpret.palette import COLOURS, COUNTS, EDGE, FAINT
from headedit.interpret.plots.heading import Subtitle, put_heading
from headedit.interpret.plots.heatmap import Grid, draw, mark_missing
from headedit.interpret.plots.overlap import draw_overlap, height_of_overlap, short_name
from headedit.interpret.plots.types import draw_types, type_grid, type_handles

_WIDTH = 8.0  # inches
_LEAST_ROWS = 1.1  # inches of a small map's height
_SETS = ("neither_set", "first_set", "second_set", "both_sets")


def compare(
    edits: Mapping[str, Edits], *, kind: str | None = None, title: str | None = None, subtitle: Subtitle = True
) -> Figure:
    """Draws which heads several edits of the same model have; a head counts if a gate on it is open.

    Args:
        edits: a name for each; handles, parameters or folders of saved edits, two or more.
        kind: the kind of site; by default attention, or else the first kind of the first edits.
        title: by default which kind is shown.
        subtitle: True for model, task and recipe, as far as they are the same for all; False for none; or a text.

    Returns:
        A figure: a small type map for each, with its number of heads; for every pair the Jaccard index as a
        dot, and that of random sets of the same sizes as a line, or of many edits a table of the index; and a
        map of the differences: for two edits the heads of either and of both, for more the number of edits that have
        a head, in shades of grey.

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
    heights = (down * (small + 0.6) + 0.6, max(3.4, min(4.2, layers * 0.1), height_of_overlap(len(grids))))
    figure = plt.figure(figsize=(_WIDTH, sum(heights) + 0.4), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=heights, squeeze=False).flat
    _maps(above, grids, down, across)
    share = min(0.99, height_of_overlap(len(grids)) / heights[1])
    cells = below.add_gridspec(2, 2, width_ratios=(1, 1.15), height_ratios=(share, 1 - share))
    left, right = below.add_subplot(cells[0, 0]), below.add_subplot(cells[:, 1])
    draw_overlap(left, grids)
    _differences(right, grids)
    name = f"Edits of {kind} heads compared"
    put_heading(figure, name if title is None else title, subtitle, edits.values())
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
        axis.set_title(f"{short_name(name)}:  {int((grid > 0).sum()):,} heads", fontsize=8)
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


def _differences(axis: Axes, grids: Mapping[str, Grid]) -> None:
    chosen = numpy.stack([grid > 0 for grid in grids.values()])  # [edits, layers, heads]
    missing = numpy.all([numpy.isnan(grid) for grid in grids.values()], axis=0)
    names = [short_name(name) for name in grids]
    if len(names) == 2:
        values, colours = chosen[0] + 2.0 * chosen[1], [COLOURS[name] for name in _SETS]
        labels = ["neither", f"only {names[0]}", f"only {names[1]}", "both"]
        axis.set_title("Where they differ", fontsize=10)
    else:
        values = chosen.sum(0).astype(float)
        shades = colormaps[COUNTS]
        colours = [
            COLOURS["neither_set"],
            *(to_hex(shades(0.2 + 0.8 * i / len(names))) for i in range(1, len(names) + 1)),
        ]
        labels = [f"{i} of {len(names)}" for i in range(len(names) + 1)]
        axis.set_title("How many edits have each head", fontsize=10)
    norm = BoundaryNorm([i - 0.5 for i in range(len(labels) + 1)], len(labels))
    draw(axis, numpy.where(missing, numpy.nan, values), colours=ListedColormap(colours), norm=norm)
    if len(axis.get_xticks(minor=True)):
        axis.grid(which="minor", color=FAINT, linewidth=0.6)
    axis.set_xlabel("head")
    axis.set_ylabel("layer")
    handles: list[Any] = [
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
