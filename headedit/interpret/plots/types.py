"""The type map: whether each head has an offset, a scale, both, or no edit."""

import numpy
from matplotlib.axes import Axes
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from headedit.interpret.head_map import Edits, HeadMap
from headedit.interpret.palette import COLOURS, EDGE, FAINT
from headedit.interpret.plots.heading import Subtitle
from headedit.interpret.plots.heatmap import Grid, draw, finish, frame, mark_groups, mark_layers, mark_missing

TYPES = {name: COLOURS[name] for name in ("none", "offset", "scale", "both")}
"""Types, in the order of their number in ``type_grid``, and their colours."""


def types(edits: Edits, *, kind: str | None = None, title: str | None = None, subtitle: Subtitle = True) -> Figure:
    """Draws a map of which edit each head has.

    Args:
        edits: the handle, attached or detached, its parameters, or a folder of saved edits.
        kind: the kind of site; by default all that are edited, one panel each.
        title: by default which kinds are shown.
        subtitle: True for model, task and recipe; False for none; or a text.

    Returns:
        A figure with a panel per kind, layers × heads: no open gate, an offset, a scale, or both, with their counts in
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
        mark_groups(axis, source.group_size(name), grid.shape[1], colour=EDGE)
        if len(kinds) > 1:
            axis.set_title(f"{name} heads", fontsize=11)
    axes[0, 0].set_ylabel("layer")
    handles = type_handles([int(sum((grid == i).sum() for grid in grids)) for i in range(len(TYPES))])
    handles += mark_missing(grids) + mark_layers(axes[0, 0], source.layer_kinds)
    name = f"Edits of {' and '.join(kinds)} heads by type"
    finish(figure, handles, name if title is None else title, subtitle, [edits])
    return figure


def type_grid(source: HeadMap, kind: str) -> Grid:
    """The type of every head as a number: the place in ``TYPES``, [layers, heads], NaN where there is no head."""
    offset, scale = (source.open_heads(kind, vector).numpy() for vector in ("offset", "scale"))
    return numpy.where(source.has_head(kind).numpy(), offset + 2.0 * scale, numpy.nan)


def draw_types(axis: Axes, grid: Grid) -> None:
    """Draws the types that ``type_grid`` returns."""
    norm = BoundaryNorm([i - 0.5 for i in range(len(TYPES) + 1)], len(TYPES))
    draw(axis, grid, colours=ListedColormap(list(TYPES.values())), norm=norm)
    if len(axis.get_xticks(minor=True)):
        axis.grid(which="minor", color=FAINT, linewidth=0.6)  # white would not show on heads without an edit


def type_handles(counts: list[int] | None = None) -> list[Patch]:
    """Handles for a legend; with ``counts``, the number of heads of each type too."""
    texts = list(TYPES) if counts is None else [f"{n}: {count:,}" for n, count in zip(TYPES, counts, strict=True)]
    colours = TYPES.values()
    return [Patch(facecolor=c, edgecolor=EDGE, label=t) for c, t in zip(colours, texts, strict=True)]
