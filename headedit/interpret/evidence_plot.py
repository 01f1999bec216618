"""The evidence heatmap: layers down, heads across, how well a probe on each head tells the classes apart."""

import matplotlib.pyplot as plt
import numpy
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from matplotlib.patheffects import withStroke
from numpy.typing import NDArray

from headedit.edits import HeadEdits
from headedit.errors import HeadEditError
from headedit.interpret.gate_plot import NO_HEAD, _draw
from headedit.interpret.iti import HeadEvidence

_POINTS = 72  # an inch


def evidence(found: HeadEvidence, edits: HeadEdits | None = None, title: str | None = None) -> Figure:
    """A heatmap of the accuracy of each head's probe on the held-out examples.

    Args:
        found: what ``headedit.interpret.iti.iti`` returned.
        edits: outlines the heads that are open in these edits: an offset or a scale with an open gate.
        title: by default the best accuracy, and that of always naming the more frequent class.

    Returns:
        A figure with one panel, layers × heads. Colour runs from the accuracy of the more frequent class, below which a
        head says nothing, to 1. Grey hatched cells: no such head, or a layer without edited heads.

    Raises:
        HeadEditError: ``edits`` has not the heads that the evidence is of.
    """
    grid = numpy.asarray(found.accuracy)
    opened = None if edits is None else _open_heads(edits, found)
    layers, heads = grid.shape
    cell = min(0.32, 9.0 / heads, 9.0 / layers)
    figure, axis = plt.subplots(
        figsize=(max(4.0, heads * cell) + 1.8, max(1.6, layers * cell) + 1.7), layout="constrained"
    )
    image = _draw(axis, grid)
    image.set_clim(found.baseline, 1)
    axis.set_xlabel("head")
    axis.set_ylabel("layer")
    below = bool((grid < found.baseline).any())
    bar = figure.colorbar(image, ax=axis, fraction=0.06, pad=0.03, extend="min" if below else "neither")
    ticks = [found.baseline, *(tenths / 10 for tenths in range(11) if tenths / 10 > found.baseline + 0.03)]
    bar.set_ticks(ticks, labels=[f"{tick:.2f}" for tick in ticks])
    bar.set_label("probe accuracy on\nheld-out examples")
    handles = []
    if opened is not None:
        figure.canvas.draw()  # lays the cells out
        handles += _outline(axis, opened)
    if numpy.isnan(grid).any():
        handles.append(Patch(facecolor=NO_HEAD, hatch="////", edgecolor="white", label="no edited head"))
    if handles:
        figure.legend(handles=handles, loc="outside lower center", frameon=False, fontsize=9, ncols=len(handles))
    best = f"best {numpy.nanmax(grid):.2f}, majority class {found.baseline:.2f}"
    figure.suptitle(title if title is not None else f"Probes on {found.kind} heads: {best}", fontsize=11)
    return figure


def _open_heads(edits: HeadEdits, found: HeadEvidence) -> NDArray[numpy.bool_]:
    shape, expected = edits.gates(found.kind).additive.shape, found.accuracy.shape
    if shape != expected:
        raise HeadEditError(
            f"These edits have {shape[0]} layers of {shape[1]} {found.kind} heads, but the evidence is of "
            f"{expected[0]} of {expected[1]}. Give the edits of that model."
        )
    opened = torch.zeros(expected, dtype=torch.bool)
    for site, edit, first in edits.module.columns(found.kind):
        either = torch.stack([edit.is_open(vector).cpu() for vector in edit.vectors]).any(0)
        opened[site.layer, first : first + site.heads] = either
    return numpy.asarray(opened)


def _outline(axis: Axes, opened: NDArray[numpy.bool_]) -> list[Patch]:
    """A black line in a white one, which shows on every colour of the map, inside each open head's cell."""
    layers, heads = opened.shape
    size = axis.get_window_extent().transformed(axis.figure.dpi_scale_trans.inverted())
    line = min(1.5, 0.09 * _POINTS * min(size.width / heads, size.height / layers))
    style = {"fill": False, "edgecolor": "black", "linewidth": line}
    effect = [withStroke(linewidth=3 * line, foreground="white")]
    for layer, head in numpy.argwhere(opened):
        axis.add_patch(Rectangle((head - 0.4, layer - 0.4), 0.8, 0.8, path_effects=effect, zorder=3, **style))
    return [Patch(**style, path_effects=effect, label=f"open head ({int(opened.sum())})")]
