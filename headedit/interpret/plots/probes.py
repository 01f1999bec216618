"""The heatmap of probes: layers down, heads across, how well a probe on each head tells the classes apart."""

import numpy
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from matplotlib.patheffects import withStroke
from numpy.typing import NDArray

from headedit.errors import HeadEditError
from headedit.interpret.evidence.iti import HeadProbes
from headedit.interpret.head_map import Edits, HeadMap
from headedit.interpret.labels import axis_label
from headedit.interpret.plots.heading import Subtitle
from headedit.interpret.plots.heatmap import add_bar, draw, finish, frame, mark_layers, mark_missing
from headedit.io.describe import describe
from headedit.training.steering.steering import Steering

_POINTS = 72  # per inch


def probes(
    found: HeadProbes | Steering, edits: Edits | None = None, title: str | None = None, *, subtitle: Subtitle = True
) -> Figure:
    """Draws a heatmap of the accuracy of each head's probe on the held-out examples.

    Args:
        found: what ``headedit.iti`` or ``headedit.steer`` returned.
        edits: outlines the heads that are open in these edits: an offset or a scale with an open gate.
        title: by default the best accuracy, and that of always naming the more frequent class.
        subtitle: True for the model of the edits, where they are given; False for none; or a text.

    Returns:
        A figure with one panel, layers × heads. Colour runs from the accuracy of always naming the more frequent class
        to 1. Grey hatched cells: no such head, or a layer without edited heads.

    Raises:
        HeadEditError: ``edits`` does not have the heads that were probed, or the examples were too few for probes.
    """
    if not isinstance(found, HeadProbes | Steering):
        raise HeadEditError(f"Cannot draw {describe(found)}; give what headedit.iti or headedit.steer returned.")
    grid = numpy.asarray(found.accuracy)
    if numpy.isnan(grid).all():
        raise HeadEditError("There is no accuracy to draw: a set had fewer than 4 examples, too few for probes.")
    source = None if edits is None else HeadMap.of(edits)
    opened = None if source is None else _open_heads(source, found)
    layers, heads = grid.shape
    figure, axes = frame(1, 1, layers, heads)
    axis = axes[0, 0]
    image = draw(axis, grid, norm=Normalize(found.baseline, 1))
    axis.set_xlabel("head")
    axis.set_ylabel("layer")
    below = bool((grid < found.baseline).any())
    bar = add_bar(image, [axis], axis_label("probe_accuracy", 20), extend="min" if below else "neither")
    ticks = [found.baseline, *(tenths / 10 for tenths in range(11) if tenths / 10 > found.baseline + 0.03)]
    bar.set_ticks(ticks, labels=[f"{tick:.2f}" for tick in ticks])
    handles = []
    if opened is not None:
        figure.canvas.draw()  # lays the cells out
        handles += _outline(axis, opened)
    if source is not None:
        handles += mark_layers(axis, source.layer_kinds)
    handles += mark_missing([grid])
    best = f"best {numpy.nanmax(grid):.2f}, majority class {found.baseline:.2f}"
    sources = [] if edits is None else [edits]
    finish(figure, handles, f"Probes on {found.kind} heads: {best}" if title is None else title, subtitle, sources)
    return figure


def _open_heads(source: HeadMap, found: HeadProbes | Steering) -> NDArray[numpy.bool_]:
    opened, expected = source.open_heads(source.shown_kinds(found.kind)[0]).numpy(), found.accuracy.shape
    if opened.shape != expected:
        raise HeadEditError(
            f"These edits have {opened.shape[0]} layers of {opened.shape[1]} {found.kind} heads, but the probes are "
            f"of {expected[0]} of {expected[1]}. Give the edits of that model."
        )
    return opened


def _outline(axis: Axes, opened: NDArray[numpy.bool_]) -> list[Patch]:
    """A black line with a white border along the edge of each open head's cell, which shows on every colour of the map.

    Both together take at most a tenth of the cell's width on either side, so that its colour stays in sight.
    """
    layers, heads = opened.shape
    size = axis.get_window_extent().transformed(axis.figure.dpi_scale_trans.inverted())
    cell = _POINTS * min(size.width / heads, size.height / layers)
    line = min(1.5, 0.05 * cell)
    style = {"fill": False, "edgecolor": "black", "linewidth": line}
    effect = [withStroke(linewidth=3 * line, foreground="white")]
    inside = 1 - 2 * 0.03
    for layer, head in numpy.argwhere(opened):
        corner = (head - inside / 2, layer - inside / 2)
        axis.add_patch(Rectangle(corner, inside, inside, path_effects=effect, zorder=3, **style))
    return [Patch(**style, path_effects=effect, label=f"open head ({int(opened.sum())})")]
