"""The frame of every heatmap: layers down, heads across, with marks for missing heads and for kinds of layers."""

import math
from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy
from matplotlib.axes import Axes
from matplotlib.colorbar import Colorbar
from matplotlib.colors import Colormap, Normalize, to_rgb
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Patch, Rectangle
from matplotlib.transforms import ScaledTranslation, blended_transform_factory
from numpy.typing import NDArray

from headedit.interpret.head_map import NOT_EDITED
from headedit.interpret.palette import INK, LAYERS, NO_HEAD, OTHER_LAYERS, SEQUENTIAL
from headedit.interpret.plots.heading import Subtitle, put_heading

_MOST_TICKS = 16
_TICK = 0.3  # inches that a tick with its number needs
HEAD_STEPS, LAYER_STEPS = (1, 2, 4, 8, 16, 32), (1, 2, 5, 10, 20, 50)
_BAR = 0.12  # inches of a colour bar's thickness
_CELL = 0.32  # inches; the most
_WIDTH, _HEIGHT = 6.0, 6.5  # inches that the cells of a figure take at most
_GRID_UP_TO = 1024  # cells
_LEAST_CELL = 0.1  # inches of a cell with a line next to it

Grid = NDArray[numpy.floating[Any]]


def frame(rows: int, columns: int, layers: int, heads: int) -> tuple[Figure, NDArray[Any]]:
    """An empty figure of panels, layers × heads each, about as wide as a notebook at most, and its axes."""
    cell = min(_CELL, _WIDTH / (columns * heads), _HEIGHT / (rows * layers))
    width, height = max(2.6, 4.4 / columns, heads * cell), max(1.3, layers * cell)
    return plt.subplots(
        rows,
        columns,
        figsize=(columns * width + 1.9, rows * (height + 0.75) + 0.9),
        layout="constrained",
        sharey="row",
        squeeze=False,
    )


def draw(axis: Axes, grid: Grid, *, colours: str | Colormap = SEQUENTIAL, norm: Normalize | None = None) -> AxesImage:
    """A heatmap of values [layers, heads]; NaN is grey and hatched: there is no such head, or it is not edited.

    Args:
        axis: to draw into; it gets ticks, and lines between the cells where there are few.
        grid: the values.
        colours: the colour map.
        norm: from values to colours; by default from 0 to 1.
    """
    layers, heads = grid.shape
    missing = numpy.isnan(grid)
    image = axis.imshow(
        numpy.ma.masked_array(grid, missing),
        cmap=colours,
        norm=Normalize(0, 1) if norm is None else norm,
        aspect="auto",
        interpolation="nearest",
    )
    if missing.any():
        backdrop = numpy.ones((layers, heads, 4))
        backdrop[..., :3] = to_rgb(NO_HEAD)
        backdrop[..., 3] = missing
        axis.imshow(backdrop, aspect="auto", interpolation="nearest")
        for top, bottom, left, right in _blocks(missing):
            corner, width, height = (left - 0.5, top - 0.5), right - left, bottom - top
            axis.add_patch(Rectangle(corner, width, height, fill=False, hatch="////", edgecolor="white", lw=0))
    set_ticks(axis, layers, heads)
    if layers * heads <= _GRID_UP_TO:
        inches = size_of(axis)
        if inches[0] / heads >= _LEAST_CELL:
            axis.set_xticks(numpy.arange(-0.5, heads), minor=True)
        if inches[1] / layers >= _LEAST_CELL:
            axis.set_yticks(numpy.arange(-0.5, layers), minor=True)
        axis.grid(which="minor", color="white", linewidth=0.6)
    axis.tick_params(which="minor", length=0)
    return image


def set_ticks(axis: Axes, layers: int, heads: int) -> None:
    """Numbers at heads and layers, as many as the axes have room for."""
    width, height = size_of(axis)
    axis.set_xticks(places(heads, width / _TICK, HEAD_STEPS))
    axis.set_yticks(places(layers, height / _TICK, LAYER_STEPS))


def places(count: int, room: float, steps: Sequence[int]) -> range:
    """Which of ``count`` numbers to write where there is room for so many."""
    most = min(_MOST_TICKS, max(2.0, room))
    return range(0, count, next((step for step in steps if count / step <= most), math.ceil(count / most)))


def size_of(axis: Axes) -> tuple[float, float]:
    """Width and height of an axes in inches, as far as they are known before the layout."""
    box, figure = axis.get_window_extent(), axis.get_figure(root=True)
    assert figure is not None
    return box.width / figure.dpi, box.height / figure.dpi


def add_bar(image: AxesImage, axes: Sequence[Axes], label: str, **options: Any) -> Colorbar:
    """A colour bar next to the axes, as high as they are."""
    figure = axes[0].get_figure(root=True)
    assert figure is not None
    height = size_of(axes[0])[1] * len(axes) / len({axis.get_subplotspec().colspan.start for axis in axes})  # type: ignore[union-attr]
    bar = figure.colorbar(image, ax=list(axes), fraction=0.05, pad=0.02, aspect=height / _BAR, **options)
    bar.set_label(label, fontsize=9)
    return bar


def mark_layers(axis: Axes, kinds: Sequence[str]) -> list[Patch]:
    """A strip left of a heatmap with a colour for every layer's kind.

    Returns:
        Handles for a legend; none, and no strip, where the layers are all of one kind or only differ in being edited.
    """
    names = list(dict.fromkeys(kinds))
    if len(set(names) - {NOT_EDITED}) < 2:
        return []
    others = iter(OTHER_LAYERS * len(names))
    colours = {name: LAYERS.get(name) or next(others) for name in names}
    style: dict[str, Any] = {"edgecolor": INK, "linewidth": 0.4}
    figure = axis.get_figure(root=True)
    assert figure is not None
    inches = figure.dpi_scale_trans + ScaledTranslation(0, 0, axis.transAxes)  # type: ignore[arg-type]  # from the left
    place = blended_transform_factory(inches, axis.transData)
    for layer, kind in enumerate(kinds):
        strip = Rectangle((-0.14, layer - 0.5), 0.1, 1, facecolor=colours[kind], clip_on=False, **style)
        strip.set_transform(place)
        axis.add_artist(strip)
    axis.tick_params(axis="y", pad=12, length=0)
    return [Patch(facecolor=colours[name], label=f"layer: {name}", **style) for name in names]


def mark_groups(axis: Axes, size: int | None, heads: int, *, colour: str = "white") -> None:
    """Draws lines between groups of ``size`` heads that share a key-value head, and labels the axis."""
    if size is None:
        axis.set_xlabel("head")
        return
    few = len(axis.get_xticks(minor=True)) > 0
    for edge in range(size, heads, size):
        axis.axvline(edge - 0.5, color=colour, linewidth=2.6 if few else 0.9)
    axis.set_xlabel(f"head  (lines: {size} per key-value head)")


def mark_missing(grids: Sequence[Grid]) -> list[Patch]:
    """The handle for a legend that explains the hatched cells, where there are any."""
    if not any(numpy.isnan(grid).any() for grid in grids):
        return []
    return [Patch(facecolor=NO_HEAD, hatch="////", edgecolor="white", label="no edited head")]


def finish(
    figure: Figure, handles: Sequence[Patch], title: str, subtitle: Subtitle = False, sources: Sequence[Any] = ()
) -> None:
    """Puts the title above, and a legend below if there is anything to explain; see ``put_heading``."""
    if handles:
        across = min(4, len(handles))
        figure.legend(handles=list(handles), loc="outside lower center", frameon=False, fontsize=9, ncols=across)
    put_heading(figure, title, subtitle, sources)


def _blocks(missing: NDArray[numpy.bool_]) -> list[tuple[int, int, int, int]]:
    """(top, bottom, left, right) of rectangles that cover the missing heads; the ends are one past the last."""
    blocks: list[tuple[int, int, int, int]] = []
    growing: dict[tuple[int, int], int] = {}
    for layer, row in enumerate([*missing, numpy.zeros(missing.shape[1], dtype=bool)]):
        edges = numpy.flatnonzero(numpy.diff(numpy.concatenate([[0], row.astype(int), [0]])))
        runs = {(int(a), int(b)) for a, b in edges.reshape(-1, 2)}
        blocks += [(top, layer, *run) for run, top in growing.items() if run not in runs]
        growing = {run: growing.get(run, layer) for run in sorted(runs)}
    return blocks
