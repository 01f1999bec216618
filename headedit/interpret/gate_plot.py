"""The gate heatmap: layers down, heads across, a panel for offsets and one for scales."""

import math
from os import PathLike

import matplotlib.pyplot as plt
import numpy
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Patch, Rectangle
from numpy.typing import NDArray

from headedit.edits import HeadEdits
from headedit.edits.storage import read

COLOURS = "cividis"  # ordered in lightness, and the same to colour-blind eyes
NO_HEAD = "#d9d9d9"
_PANELS = (("Offset gates  $g_a$", "additive"), ("Scale gates  $g_m$", "multiplicative"))
_MOST_TICKS = 16


def gates(edits: "HeadEdits | str | PathLike[str]", *, kind: str | None = None, title: str | None = None) -> Figure:
    """A heatmap of the gates in eval mode.

    Args:
        edits: the handle, attached or detached, or a folder of saved edits.
        kind: the kind of site; by default attention, or what there is.
        title: by default what kind of site is shown.

    Returns:
        A figure with two panels, additive and multiplicative, each layers × heads. Colour is the gate's
        value from 0, closed, to 1, open. Grey hatched cells: no such head, or a layer without edited heads.
    """
    module = edits.module if isinstance(edits, HeadEdits) else read(edits)
    values = module.gates(kind)
    grids = [numpy.asarray(getattr(values, field)) for _, field in _PANELS]
    layers, heads = grids[0].shape
    cell = min(0.32, 5.2 / heads, 9.0 / layers) if heads > 1 else 0.32
    width, height = max(3.0, heads * cell), max(1.6, layers * cell)
    figure, axes = plt.subplots(
        1, 2, figsize=(2 * width + 2.0, height + 1.5), layout="constrained", sharey=True, squeeze=False
    )
    image = None
    for axis, grid, (name, _) in zip(axes[0], grids, _PANELS, strict=True):
        image = _draw(axis, grid)
        axis.set_title(f"{name}:  {_count(grid)}", fontsize=11)
        axis.set_xlabel("head")
    axes[0, 0].set_ylabel("layer")
    assert image is not None
    bar = figure.colorbar(image, ax=axes[0].tolist(), fraction=0.05, pad=0.02)
    bar.set_label("gate in eval mode\n(0 closed, 1 open)")
    if any(numpy.isnan(grid).any() for grid in grids):
        patch = Patch(facecolor=NO_HEAD, hatch="////", edgecolor="white", label="no edited head")
        figure.legend(handles=[patch], loc="outside lower center", frameon=False, fontsize=9)
    shown = module.kinds()[0] if kind is None else kind
    figure.suptitle(title if title is not None else f"Edits of {shown} heads", fontsize=12)
    return figure


def _draw(axis: Axes, grid: NDArray[numpy.float32]) -> AxesImage:
    layers, heads = grid.shape
    missing = numpy.isnan(grid)
    image = axis.imshow(
        numpy.ma.masked_array(grid, missing), cmap=COLOURS, vmin=0, vmax=1, aspect="auto", interpolation="nearest"
    )
    if missing.any():
        backdrop = numpy.ones((layers, heads, 4))
        backdrop[..., :3] = to_rgb(NO_HEAD)
        backdrop[..., 3] = missing
        axis.imshow(backdrop, aspect="auto", interpolation="nearest")
        for layer, head in _runs(missing):
            size = (head[1] - head[0], 1)
            box = Rectangle((head[0] - 0.5, layer - 0.5), *size, fill=False, hatch="////", edgecolor="white", lw=0)
            axis.add_patch(box)
    for set_ticks, count in ((axis.set_xticks, heads), (axis.set_yticks, layers)):
        set_ticks(range(0, count, math.ceil(count / _MOST_TICKS)))
    if layers * heads <= 1024:
        axis.set_xticks(numpy.arange(-0.5, heads), minor=True)
        axis.set_yticks(numpy.arange(-0.5, layers), minor=True)
        axis.grid(which="minor", color="white", linewidth=0.6)
    axis.tick_params(which="minor", length=0)
    return image


def _runs(missing: NDArray[numpy.bool_]) -> list[tuple[int, tuple[int, int]]]:
    """(layer, (first head, one past the last)) of each stretch of missing heads."""
    runs = []
    for layer, row in enumerate(missing):
        edges = numpy.flatnonzero(numpy.diff(numpy.concatenate([[0], row.astype(int), [0]])))
        runs += [(layer, (int(a), int(b))) for a, b in edges.reshape(-1, 2)]
    return runs


def _count(grid: NDArray[numpy.float32]) -> str:
    there = ~numpy.isnan(grid)
    return f"{int((grid[there] > 0).sum())} of {int(there.sum())} open" if there.any() else "none"
