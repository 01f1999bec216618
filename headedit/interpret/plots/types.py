"""The type map: what is done to every head: an offset, a scale, both, or nothing."""

import numpy
from matplotlib.axes import Axes
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from headedit.interpret.head_map import Edits, HeadMap
from headedit.interpret.plots.heatmap import Grid, draw, finish, frame, mark_groups, mark_layers, mark_missing

TYPES = {"none": "#f0f0f0", "offset": "#0072b2", "scale": "#e69f00", "both": "#000000"}
"""Types in the order of their number in ``type_grid``, with colours that differ in lightness too."""


def types(edits: Edits, *, kind: str | None = None, title: str | None = None) -> Figure:
    """A map of which edit each head has.

    Args:
        edits: the handle, attached or detached, its parameters, or a folder of saved edits.
        kind: the kind of site; by default all that are edited, a panel each.
        title: by default which kinds are shown.

    Returns:
        A figure with a panel a kind, layers × heads: no open gate, an offset, a scale, or both, with their numbers in
        the legend. Grey hatched cells and other marks are those of ``headedit.plot.gates``.

    Raises:
        HeadEditError: the edits have no site of the kind, or the folder holds none.
    """
    source = HeadMap.of(edits)
    kinds = source.shown_kinds(kind)
    grids = [type_grid(source, name) for name in kinds]
    figure, axes = frame(1, len(kinds), grids[0].shape[0], max(grid.shape[1] for grid in grids))
    for axis, name, grid in zip(axes[0], kinds, grids, strict=True):
        draw_types(axis, grid)
        mark_groups(axis, source.group_size(name), grid.shape[1], colour="#777777")
        if len(kinds) > 1:
            axis.set_title(f"{name} heads", fontsize=11)
    axes[0, 0].set_ylabel("layer")
    handles = type_handles([int(sum((grid == i).sum() for grid in grids)) for i in range(len(TYPES))])
    handles += mark_missing(grids) + mark_layers(axes[0, 0], source.layer_kinds)
    finish(figure, handles, f"What is done to {' and '.join(kinds)} heads" if title is None else title)
    return figure


def type_grid(source: HeadMap, kind: str) -> Grid:
    """The type of every head as a number: the place in ``TYPES``, [layers, heads], NaN where there is no head."""
    offset, scale = (source.open_heads(kind, vector).numpy() for vector in ("offset", "scale"))
    return numpy.where(source.has_head(kind).numpy(), offset + 2.0 * scale, numpy.nan)


def draw_types(axis: Axes, grid: Grid) -> None:
    """Draws what ``type_grid`` gave."""
    norm = BoundaryNorm([i - 0.5 for i in range(len(TYPES) + 1)], len(TYPES))
    draw(axis, grid, colours=ListedColormap(list(TYPES.values())), norm=norm)
    if len(axis.get_xticks(minor=True)):
        axis.grid(which="minor", color="#bbbbbb", linewidth=0.6)  # white would be lost on heads without an edit


def type_handles(counts: list[int] | None = None) -> list[Patch]:
    """Handles for a legend, perhaps with the number of heads of each type."""
    texts = list(TYPES) if counts is None else [f"{n}: {count:,}" for n, count in zip(TYPES, counts, strict=True)]
    colours = TYPES.values()
    return [Patch(facecolor=c, edgecolor="#777777", label=t) for c, t in zip(colours, texts, strict=True)]
