"""A figure as an SVG inside the page, in the page's colours, so that it reads on a light and on a dark page alike."""

import io
import re
from collections.abc import Iterator
from html import escape
from typing import Any

import matplotlib as mpl
import numpy
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import PathPatch
from matplotlib.path import Path

from headedit.interpret.palette import COLOURS, LAYERS, METHODS, OTHER_LAYERS, SEQUENTIAL

DIM = 0.13
"""Luminance of a colour below which a line of it does not stand out from the dark page."""

_MOST_LINES = 64  # of a panel that are kept as lines
_DPI = 144  # of what is not
_PALETTE = {*COLOURS.values(), *LAYERS.values(), *METHODS.values(), *OTHER_LAYERS}
_OF_CELLS = {to_hex(colour) for colour in colormaps[SEQUENTIAL](range(256))}
_LITERAL = {(0.0, 0.0, 0.0): (0, 0, 1 / 255), (1.0, 1.0, 1.0): (1, 1, 254 / 255)}  # black and white of every page


def luminance(colour: str) -> float:
    """The relative luminance of a colour, from 0 to 1, as WCAG 2 defines it."""
    values = numpy.asarray(to_rgb(colour))
    linear = numpy.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    return float(linear @ (0.2126, 0.7152, 0.0722))


def lifted_colours() -> dict[str, str]:
    """The palette's colours that are too dark for a dark page, and what they are there."""
    found = {}
    for colour in sorted(_PALETTE):
        lifted: Any = numpy.asarray(to_rgb(colour))
        if _is_grey(colour) or luminance(colour) >= DIM:
            continue
        while luminance(to_hex(lifted)) < 2 * DIM:
            lifted = lifted + (1 - lifted) * 0.1
        found[colour] = to_hex(lifted)
    return found


def svg_of(figure: Figure, name: str, label: str) -> str:
    """The figure as an SVG for inside a page that has ``--page``, ``--text`` and the rules of ``colour_rules``.

    Greys lie between the page's colour and its text's, the same share as on white; cells of heatmaps are paths, and
    text is text. Of panels with very many lines these are a picture with a transparent background.

    Args:
        figure: it is changed.
        name: unlike that of any other SVG in the page, as ids are unique in a page.
        label: what a screen reader says.
    """
    figure.patch.set_visible(False)
    for number, axis in enumerate(figure.axes):
        _prepare(axis, f"cells-{number}")
    payload = io.BytesIO()
    options: Any = {"svg.fonttype": "none", "svg.hashsalt": name, "font.sans-serif": ["DejaVu Sans", "Verdana"]}
    with mpl.rc_context(options):
        figure.savefig(payload, format="svg", dpi=_DPI, metadata={"Date": None})
    text = payload.getvalue().decode()
    content = text[text.index(">", text.index("<svg")) + 1 : text.rindex("</svg>")]
    for part in (r"<metadata>.*?</metadata>", r"<style\b.*?</style>", r"<!--.*?-->"):
        content = re.sub(part, "", content, flags=re.DOTALL)
    content = re.sub(r'(<image\b[^>]*?) id="[^"]*"', r"\1", content)  # two colour bars are the same image
    content = re.sub(r'\bid="', f'id="{name}-', content).replace("url(#", f"url(#{name}-")
    content = content.replace('xlink:href="#', f'href="#{name}-').replace("xlink:href=", "href=")
    content = re.sub(r"(?<=fill: )#[0-9a-f]{6}|(?<=stroke: )#[0-9a-f]{6}", _themed, content)
    content = re.sub(r"\n\s*", "\n", re.sub(r"<[^<>]+>", _shorter, content)).strip()
    width, height = figure.get_size_inches()
    return (
        f'<svg role="img" aria-label="{escape(label)}" width="{96 * width:.0f}" height="{96 * height:.0f}" '
        f'viewBox="0 0 {72 * width:g} {72 * height:g}" fill="currentColor">\n{content}\n</svg>'
    )


def _prepare(axis: Axes, name: str) -> None:
    limits = axis.get_xlim(), axis.get_ylim()
    for number, image in enumerate(axis.images):
        if image.get_visible() and image.get_array() is not None:
            for patch in _cells(image, f"{name}-{number}"):
                axis.add_patch(patch)
            image.set_visible(False)
    axis.set(xlim=limits[0], ylim=limits[1])
    for text in axis.texts if axis.images else ():
        text.set_color(_LITERAL.get(to_rgb(text.get_color()), to_rgb(text.get_color())))
    if len(axis.lines) > _MOST_LINES:
        for line in axis.lines:
            line.set_rasterized(True)


def _cells(image: AxesImage, name: str) -> Iterator[PathPatch]:
    """A patch for every colour of an image, of rectangles over neighbouring cells that have it."""
    values: Any = image.get_array()
    colours = image.to_rgba(values, bytes=True)
    left, right, bottom, top = image.get_extent()
    rows, columns = colours.shape[:2]
    wide, high = (right - left) / columns, (bottom - top) / rows
    flat, where = numpy.unique(colours.reshape(-1, 4), axis=0, return_inverse=True)
    grid = where.reshape(rows, columns)
    for number, colour in enumerate(flat):
        if colour[3] == 0:
            continue
        boxes = []
        for row, line in enumerate(grid == number):
            edges = numpy.flatnonzero(numpy.diff(numpy.concatenate([[0], line.astype(int), [0]])))
            for first, end in edges.reshape(-1, 2).tolist():
                x, y = [left + wide * first, left + wide * end], [top + high * row, top + high * (row + 1)]
                boxes.append(Path([(x[0], y[0]), (x[1], y[0]), (x[1], y[1]), (x[0], y[1]), (x[0], y[0])], closed=True))
        style = {"facecolor": colour / 255, "linewidth": 0, "zorder": image.get_zorder(), "gid": f"{name}-{number}"}
        yield PathPatch(Path.make_compound_path(*boxes), **style)


def _themed(found: re.Match[str]) -> str:
    """What stands for a colour in the page."""
    colour = found.group()
    if colour == COLOURS["none"]:
        return "var(--none)"
    if _is_grey(colour) and colour not in _OF_CELLS:
        return f"color-mix(in srgb, var(--page) {100 * to_rgb(colour)[0]:.0f}%, var(--text))"
    if colour in _PALETTE and not _is_grey(colour) and luminance(colour) < DIM:
        return f"var(--lifted-{colour[1:]})"
    return colour


def _shorter(tag: re.Match[str]) -> str:
    """A tag whose coordinates have two decimals."""
    return re.sub(r"(\d\.\d\d)\d+(?=[ \n\",)])", r"\1", tag.group())


def _is_grey(colour: str) -> bool:
    return len(set(to_rgb(colour))) == 1
