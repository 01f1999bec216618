"""The gates as an SVG without scripts, with text in the colour of the page around it, and numbers over its cells."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from html import escape

import numpy
from matplotlib import colormaps
from matplotlib.colors import to_hex
from numpy.typing import NDArray

from headedit.interpret.head_map import HeadMap
from headedit.interpret.labels import short
from headedit.interpret.palette import SEQUENTIAL
from headedit.interpret.plots.heatmap import HEAD_STEPS, LAYER_STEPS, Grid, places
from headedit.interpret.plots.hover import EVERY_UP_TO

_LEVELS = 10
_PANEL, _HEIGHT = 320.0, 300.0  # pixels that the cells of a panel take at most
_CELL = 20.0  # the most
_MOST_TICKS = 12
_LEFT, _TOP, _BETWEEN, _BOTTOM = 42.0, 20.0, 24.0, 34.0
_LEAST_WIDTH = 170.0  # for the title above a panel
_GRID_UP_TO = 1024  # cells


@dataclass(frozen=True)
class Drawing:
    """What is in an SVG, and its size in pixels."""

    content: str
    width: float
    height: float
    label: str

    def svg(self, style: str = "") -> str:
        """The SVG; its text has the colour of the page, or of a style sheet."""
        return (
            f"<svg xmlns='http://www.w3.org/2000/svg' role='img' aria-label='{escape(self.label)}' "
            f"width='{self.width:.0f}' height='{self.height:.0f}' viewBox='0 0 {self.width:.0f} {self.height:.0f}' "
            "font-size='11' font-family='sans-serif' fill='currentColor' "
            f"style='display:block;max-width:100%;margin-top:6px'>{style}{self.content}</svg>"
        )


def gate_maps(source: HeadMap, *, hover: Mapping[tuple[str, int, int], str] | None = None) -> str:
    """An SVG per kind of site: gates of offsets and of scales side by side, layers down, heads across, and a legend.

    Args:
        source: the edits.
        hover: by kind, layer and head, what the browser shows over the cell; of a large map only for heads whose
            gate is open. None for nothing.
    """
    return "".join(drawing(source, kind, hover or {}).svg() for kind in source.module.kinds())


def drawing(source: HeadMap, kind: str, hover: Mapping[tuple[str, int, int], str]) -> Drawing:
    """The gates of one kind of site; see ``gate_maps``."""
    gates = source.module.gates(kind)
    panels = [
        (short("offset_gates"), numpy.asarray(gates.offset)),
        (short("scale_gates"), numpy.asarray(gates.scale)),
    ]
    panels = [(name, grid) for name, grid in panels if not numpy.isnan(grid).all()]
    layers, heads = panels[0][1].shape
    wide, high = min(_CELL, _PANEL / heads), min(_CELL, _HEIGHT / layers)
    step = max(_LEAST_WIDTH, heads * wide) + _BETWEEN
    width, height = _LEFT + len(panels) * step, _TOP + layers * high + _BOTTOM + 22
    prefix = f"{kind}: " if len(source.module.kinds()) > 1 else ""
    drawn = []
    for i, (name, grid) in enumerate(panels):
        place = f"translate({_LEFT + i * step:g} {_TOP:g})"
        title = f"<text y='-6'>{escape(prefix + name)}</text>"
        cells = f"<g transform='scale({wide:.4g} {high:.4g})'>{''.join(_cells(grid))}</g>"
        lines = "".join(_lines(grid, wide, high))
        axes = "".join(_ticks(layers, heads, wide, high, first=i == 0))
        texts = "".join(_hover(grid, kind, hover, wide, high))
        drawn.append(f"<g transform='{place}'>{title}{cells}{lines}{axes}{texts}</g>")
    legend = _legend(any(numpy.isnan(grid).any() for _, grid in panels))
    drawn.append(f"<g transform='translate({_LEFT:g} {height - 16:g})'>{legend}</g>")
    return Drawing("".join(drawn), width, height, f"{kind} gates, layers by heads")


def _hover(grid: Grid, kind: str, hover: Mapping[tuple[str, int, int], str], wide: float, high: float) -> Iterator[str]:
    """An invisible box with a title over every head that has a text."""
    layers, heads = grid.shape
    every = layers * heads <= EVERY_UP_TO
    for layer, head in numpy.argwhere(~numpy.isnan(grid)).tolist():
        text = hover.get((kind, layer, head))
        if text is not None and (every or grid[layer, head] > 0):
            x, y = head * wide, layer * high
            box = f"x='{x:.1f}' y='{y:.1f}' width='{wide:.1f}' height='{high:.1f}'"
            yield f"<rect class='head' {box} fill-opacity='0'><title>{escape(text)}</title></rect>"


def _cells(grid: Grid) -> Iterator[str]:
    """A path for every level of the gates, in units of cells, and a pale one where there is no head."""
    levels = numpy.where(numpy.isnan(grid), -1, numpy.ceil(numpy.nan_to_num(grid) * _LEVELS)).astype(int)
    for level in sorted(set(levels.flat)):
        runs = [run for layer, row in enumerate(levels == level) for run in _runs(layer, row)]
        path = "".join(f"M{head} {layer}h{length}v1h-{length}z" for layer, head, length in runs)
        if level >= 0:
            yield f"<path data-gate='{level / _LEVELS:g}' fill='{_colour(level)}' d='{path}'/>"
            continue
        yield f"<path data-gate='none' fill-opacity='.12' d='{path}'/>"


def _lines(grid: Grid, wide: float, high: float) -> Iterator[str]:
    """Strokes through the cells without a head, and lines between cells where there are few, in pixels."""
    layers, heads = grid.shape
    missing = numpy.argwhere(numpy.isnan(grid)).tolist()
    if missing:
        strokes = "".join(f"M{h * wide:.4g} {(n + 1) * high:.4g}l{wide:.4g}-{high:.4g}" for n, h in missing)
        yield f"<path stroke='currentColor' stroke-opacity='.3' d='{strokes}'/>"
    if layers * heads <= _GRID_UP_TO:
        lines = [f"M{i * wide:.4g} 0v{layers * high:.4g}" for i in range(1, heads)]
        lines += [f"M0 {i * high:.4g}h{heads * wide:.4g}" for i in range(1, layers)]
        yield f"<path stroke='#fff' stroke-opacity='.5' d='{''.join(lines)}'/>"


def _runs(layer: int, there: NDArray[numpy.bool_]) -> Iterator[tuple[int, int, int]]:
    """(layer, first head, number) of neighbouring heads that are alike."""
    edges = numpy.flatnonzero(numpy.diff(numpy.concatenate([[0], there.astype(int), [0]])))
    for first, end in edges.reshape(-1, 2).tolist():
        yield layer, first, end - first


def _ticks(layers: int, heads: int, wide: float, high: float, *, first: bool) -> Iterator[str]:
    for head in places(heads, _MOST_TICKS, HEAD_STEPS):
        yield f"<text x='{(head + 0.5) * wide:.1f}' y='{layers * high + 12:.1f}' text-anchor='middle'>{head}</text>"
    yield f"<text x='{heads * wide / 2:.1f}' y='{layers * high + 25:.1f}' text-anchor='middle'>head</text>"
    if first:
        for layer in places(layers, _MOST_TICKS, LAYER_STEPS):
            yield f"<text x='-5' y='{(layer + 0.5) * high + 4:.1f}' text-anchor='end'>{layer}</text>"
        turned = f"translate(-28 {layers * high / 2:.1f}) rotate(-90)"
        yield f"<text text-anchor='middle' transform='{turned}'>layer</text>"


def _legend(missing: bool) -> str:
    boxes = "".join(
        f"<rect x='{48 + 12 * level}' width='12' height='12' fill='{_colour(level)}'/>" for level in range(_LEVELS + 1)
    )
    legend = f"<text y='10'>closed</text>{boxes}<text x='{48 + 12 * _LEVELS + 18}' y='10'>open</text>"
    if missing:
        box = "<path transform='translate(245)' fill-opacity='.12' d='M0 0h12v12h-12z'/>"
        stroke = "<path transform='translate(245)' stroke='currentColor' stroke-opacity='.3' d='M0 12L12 0'/>"
        legend += f"{box}{stroke}<text x='262' y='10'>no edited head</text>"
    return legend


def _colour(level: int) -> str:
    return to_hex(colormaps[SEQUENTIAL](level / _LEVELS))
