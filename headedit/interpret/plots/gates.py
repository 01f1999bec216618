"""The gate heatmap: layers down, heads across, one panel for offsets and one for scales."""

import numpy
from matplotlib.figure import Figure

from headedit.interpret.head_map import Edits, HeadMap
from headedit.interpret.labels import short
from headedit.interpret.plots.heading import Subtitle
from headedit.interpret.plots.heatmap import Grid, add_bar, draw, finish, frame, mark_groups, mark_layers, mark_missing

_PANELS = (("offset_gates", "$g_a$", "offset"), ("scale_gates", "$g_m$", "scale"))


def gates(edits: Edits, *, kind: str | None = None, title: str | None = None, subtitle: Subtitle = True) -> Figure:
    """Draws a heatmap of the gates in eval mode.

    Args:
        edits: the handle, attached or detached, its parameters, or a folder of saved edits.
        kind: the kind of site; by default all that are edited, one row of panels each.
        title: by default which kinds are shown.
        subtitle: True for model, task and recipe; False for none; or a text.

    Returns:
        A figure with two panels per kind, offset gates and scale gates, each layers × heads. Colour is the gate's value
        from 0, closed, to 1, open. Grey hatched cells: no such head, or a layer without edited heads. Lines separate
        heads that do not share a key-value head; where layers differ in kind, a strip next to them shows it.

    Raises:
        HeadEditError: the edits have no site of the kind, or the folder holds none.
    """
    source = HeadMap.of(edits)
    kinds = source.shown_kinds(kind)
    grids = {
        name: [numpy.asarray(getattr(source.module.gates(name), field)) for *_, field in _PANELS] for name in kinds
    }
    layers, heads = (max(pair[0].shape[i] for pair in grids.values()) for i in (0, 1))
    figure, axes = frame(len(kinds), len(_PANELS), layers, heads)
    handles = []
    for row, (name, pair) in zip(axes, grids.items(), strict=True):
        for axis, grid, (quantity, symbol, _) in zip(row, pair, _PANELS, strict=True):
            image = draw(axis, grid)
            mark_groups(axis, source.group_size(name), grid.shape[1])
            axis.set_title(f"{short(quantity).capitalize()}  {symbol}:  {_count(grid)}", fontsize=11)
        row[0].set_ylabel("layer" if len(kinds) == 1 else f"{name} heads\nlayer")
        handles = mark_layers(row[0], source.layer_kinds)
    add_bar(image, axes.ravel().tolist(), "gate in eval mode\n(0 closed, 1 open)")
    handles += mark_missing([grid for pair in grids.values() for grid in pair])
    finish(figure, handles, f"Gates of {' and '.join(kinds)} heads" if title is None else title, subtitle, [edits])
    return figure


def _count(grid: Grid) -> str:
    there = ~numpy.isnan(grid)
    return f"{int((grid[there] > 0).sum())} of {int(there.sum())} open" if there.any() else "none"
