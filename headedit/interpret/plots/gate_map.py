"""The interactive gate map: HTML and SVG without scripts, in which the browser shows a head's numbers and tokens."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt

from headedit.errors import HeadEditError
from headedit.interpret.evidence.tokens import HeadWords
from headedit.interpret.head_map import Edits, HeadMap
from headedit.interpret.naming import subtitle_of
from headedit.interpret.plots.gates import gates
from headedit.interpret.plots.heading import Subtitle
from headedit.interpret.plots.hover import hover_texts
from headedit.interpret.plots.svg import Drawing, drawing
from headedit.io.files import write_atomically

if TYPE_CHECKING:
    import pandas  # type: ignore[import-untyped,unused-ignore]

_HOVER = "<style>.head:hover{stroke:currentColor;stroke-width:2}</style>"
_STYLE = f"<style>svg{{color-scheme:light dark;color:CanvasText}}</style>{_HOVER}"
_HEADING = 40.0  # pixels of title and subtitle
_DPI = 90


@dataclass(frozen=True, kw_only=True)
class GateMap:
    """A gate map for a notebook, a page or a README; a notebook shows it by itself.

    Fields:
        title, subtitle: what stands above it.
        svg: the whole picture as one SVG, for a file; a browser shows a head's numbers and tokens over its cell.
        html: the same for a page. Where a viewer drops SVG and styles, as GitHub does in notebooks, the picture is
            static, a PNG.
        png: the static picture.
    """

    title: str
    subtitle: str
    svg: str = field(repr=False)
    html: str = field(repr=False)
    png: bytes = field(repr=False)

    def save(self, path: "str | PathLike[str]") -> None:
        """Writes a file: ``.svg``, ``.html`` or ``.png``.

        Raises:
            HeadEditError: the name ends otherwise, or there is no such folder.
        """
        file = Path(path)
        page = f"<!doctype html><html lang='en'><meta charset='utf-8'><title>{escape(self.title)}</title>"
        page += "<style>:root{color-scheme:light dark;font-family:sans-serif}h1{position:absolute;clip-path:inset(50%)}"
        page += f"</style><main><h1>{escape(self.title)}</h1>{self.html}</main></html>\n"
        contents = {".svg": self.svg.encode(), ".html": page.encode(), ".png": self.png}
        if file.suffix not in contents:
            raise HeadEditError(f"{file}: a gate map is saved as .svg, .html or .png.")
        if not file.parent.is_dir():
            raise HeadEditError(f"{file}: the folder {file.parent} does not exist; make it first.")
        write_atomically(file, contents[file.suffix])

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        return {
            "text/html": self.html,
            "image/png": base64.b64encode(self.png).decode(),
            "text/plain": repr(self),
        }


def gate_map(
    edits: Edits,
    *,
    tokens: Sequence[HeadWords] = (),
    evidence: "pandas.DataFrame | None" = None,
    title: str | None = None,
    subtitle: Subtitle = True,
) -> GateMap:
    """Draws the gates so that the pointer over a head shows its gates, sizes, effect and tokens; needs no widgets.

    >>> headedit.plot.gate_map(edits, tokens=headedit.tokens(edits, tokenizer)).save("gates.svg")  # doctest: +SKIP

    Args:
        edits: the handle, attached or detached, its parameters, or a folder of saved edits.
        tokens: what ``headedit.tokens`` returned, for the tokens that each head promotes and suppresses.
        evidence: the frame that ``headedit.evidence`` returned, for effects, and for tokens where ``tokens`` has none.
        title: by default which kinds of heads are shown.
        subtitle: True for model, task and recipe; False for none; or a text.

    Returns:
        The map, with panels for offsets and scales of every kind of site, layers down and heads across. In a map of
        more than 512 heads only those with an open gate have a text. ``save`` writes an SVG, which a README shows as a
        picture and a browser that opens it with its texts.

    Raises:
        HeadEditError: the folder holds no edits, or a file is damaged.
    """
    source = HeadMap.of(edits)
    hover = hover_texts(source, tokens, evidence)
    kinds = source.module.kinds()
    name = f"Gates of {' and '.join(kinds)} heads" if title is None else title
    below = subtitle if isinstance(subtitle, str) else subtitle_of([edits]) if subtitle else ""
    whole = _stacked(name, below, _counted(source), [drawing(source, kind, hover) for kind in kinds])
    figure = gates(edits, title=name, subtitle=below or False)
    payload = io.BytesIO()
    try:
        figure.savefig(payload, format="png", dpi=_DPI)
    finally:
        plt.close(figure)
    png = payload.getvalue()
    still = f"data:image/png;base64,{base64.b64encode(png).decode()}"
    fallback = f"<img alt='{escape(name)}' src='{still}' style='display:none'/>"
    return GateMap(
        title=name, subtitle=below, svg=whole.svg(_STYLE), html=f"<div>{whole.svg(_HOVER)}{fallback}</div>", png=png
    )


def _counted(source: HeadMap) -> str:
    """How many gates are open, for those who cannot see the map."""
    counts = source.module.count_open()
    there = [(name, *counts[name]) for name in ("offset", "scale") if counts[name][1]]
    return " and ".join(f"{opened:,} of {total:,} {name} gates" for name, opened, total in there)


def _stacked(title: str, subtitle: str, counted: str, parts: Sequence[Drawing]) -> Drawing:
    """Drawings below each other, with a title."""
    content = f"<text x='8' y='18' font-size='14' font-weight='bold'>{escape(title)}</text>"
    content += f"<text x='8' y='34' opacity='.75'>{escape(subtitle)}</text>" if subtitle else ""
    top = _HEADING
    for part in parts:
        content += f"<g transform='translate(0 {top:g})'>{part.content}</g>"
        top += part.height + 8
    width = max([*(part.width for part in parts), 8.0 * len(title) + 16, 6.0 * len(subtitle) + 16])
    return Drawing(content, width, top, f"{title}: {counted} are open")
