"""What stands above a picture: its title, and a subtitle with model, task and recipe as far as they are known."""

import textwrap
from collections.abc import Iterable
from typing import Any

from matplotlib.figure import Figure
from matplotlib.text import Annotation

from headedit.interpret.naming import subtitle_of
from headedit.interpret.palette import INK

Subtitle = bool | str
"""True names model, task and recipe, as far as they are known; False leaves the subtitle out; a text is taken as it
is."""

_TITLE, _SMALL = 12, 9  # points
_LINE = 1.25  # of a line of text, over the size of its letters
_POINTS = 72  # per inch


def put_heading(figure: Figure, title: str, subtitle: Subtitle = False, sources: Iterable[Any] = ()) -> None:
    """Writes the title, and the subtitle below it in small letters, and makes the figure higher by as much.

    Args:
        figure: with the constrained layout.
        title: may have several lines.
        subtitle: see ``Subtitle``.
        sources: what is drawn: handles, runs, folders; what they have in common is named.
    """
    width, height = figure.get_size_inches()
    above = figure.suptitle(_wrapped(title, width, _TITLE), fontsize=_TITLE)
    text = subtitle if isinstance(subtitle, str) else subtitle_of(sources) if subtitle else ""
    if not text:
        return
    text = _wrapped(text, width, _SMALL)
    extra = (text.count("\n") + 1) * _LINE * _SMALL / _POINTS
    figure.set_size_inches(width, height + extra)
    engine = figure.get_layout_engine()
    assert engine is not None
    engine.set(rect=(0, 0, 1, 1 - extra / (height + extra)))  # type: ignore[call-arg]
    place: dict[str, Any] = {"xycoords": above, "textcoords": "offset points", "annotation_clip": False}
    style: dict[str, Any] = {"ha": "center", "va": "top", "fontsize": _SMALL, "color": INK, "gid": "subtitle"}
    figure.add_artist(Annotation(text.replace("$", r"\$"), (0.5, 0), xytext=(0, -2), **place, **style))


def _wrapped(text: str, width: float, size: float) -> str:
    """A text in lines that are not wider than a figure, where letters are about 0.55 as wide as high."""
    letters = max(20, int(_POINTS * width / (0.55 * size)))
    return "\n".join(textwrap.fill(line, letters) for line in text.split("\n"))
