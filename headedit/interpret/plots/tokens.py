"""What edits say as a picture: a panel a head, with the tokens that it promotes and those that it suppresses."""

import math
from collections.abc import Sequence
from typing import Literal

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from headedit.errors import HeadEditError
from headedit.interpret.evidence.tokens import HeadWords, Said, ScaleChange

_UP, _DOWN = "#0072b2", "#d55e00"  # apart to colour-blind eyes
_ACROSS = 4
_LONGEST = 14


def tokens(
    words: Sequence[HeadWords],
    *,
    show: Literal["weights", "measured"] | None = None,
    top: int = 5,
    most: int = 12,
    title: str | None = None,
) -> Figure:
    """Bars of the change of the logits, a panel a head.

    Args:
        words: what ``headedit.interpret.evidence.tokens`` returned.
        show: as read from the weights, or as measured on data; by default what was measured, if something was.
        top: tokens either way.
        most: heads, from the first.
        title: by default what is drawn.

    Returns:
        A figure with a panel for each head, layer.head above it, and where it has a tuned scale the range of its
        factors and how much of the output that changes. A panel without bars says why. Bars are in logits above their
        mean over the vocabulary; those of the weights leave a positive factor open, so they compare within a panel.

    Raises:
        HeadEditError: there are no heads, or ``measured`` is asked for and nothing was measured.
    """
    if not words:
        raise HeadEditError("There is nothing to draw: no head is given.")
    there = any(word.measured is not None for word in words)
    if show not in (None, "weights", "measured") or (show == "measured" and not there):
        what = "nothing was measured; give tokens() data" if show == "measured" else f"found {show!r}"
        raise HeadEditError(f"show: {what}. Possible: 'weights', and 'measured' after a measurement on data.")
    show = show or ("measured" if there else "weights")
    shown = words[:most]
    across = min(_ACROSS, len(shown))
    down = math.ceil(len(shown) / across)
    size = (max(4.6, 2.75 * across), 1.1 + (0.75 + 0.36 * top) * down)
    figure, axes = plt.subplots(down, across, figsize=size, layout="constrained", squeeze=False)
    for axis, word in zip(axes.flat, shown, strict=False):
        said: Said | None = getattr(word, show)
        axis.set_title(_heading(word), fontsize=9)
        if said is None:
            _empty(axis, word)
        else:
            _bars(axis, said, top)
    for axis in axes.flat[len(shown) :]:
        axis.set_axis_off()
    unit = (
        "mean change on data" if show == "measured" else "direct effect of the offset, each head in a unit of its own"
    )
    figure.supxlabel(
        f"logit against the mean over the vocabulary: {unit} (right: promoted, left: suppressed)", fontsize=9
    )
    more = f" (first {len(shown)} of {len(words)} heads)" if len(words) > len(shown) else ""
    figure.suptitle(title or f"What the edits promote and suppress{more}", fontsize=12)
    return figure


def _bars(axis: Axes, said: Said, top: int) -> None:
    pairs = said.promotes[:top] + said.suppresses[:top][::-1]
    values = [value for _, value in pairs]
    axis.barh(range(len(pairs)), values, color=[_UP if value > 0 else _DOWN for value in values], height=0.75)
    for i, (token, value) in enumerate(pairs):
        side, end = ("right", -4) if value > 0 else ("left", 4)
        axis.annotate(
            _visible(token), (0, i), xytext=(end, 0), textcoords="offset points", ha=side, va="center", fontsize=8
        )
    reach = 1.1 * max(map(abs, values))
    axis.set_xlim(-reach, reach)
    axis.invert_yaxis()
    axis.axvline(0, color="#444444", linewidth=0.8)
    axis.set_yticks([])
    axis.locator_params(axis="x", nbins=5)
    axis.tick_params(axis="x", labelsize=7)
    axis.spines[["top", "right", "left"]].set_visible(False)


def _empty(axis: Axes, word: HeadWords) -> None:
    reason = word.obstacle or "no offset: a scale speaks only\nwith data (tokens(..., data))"
    axis.text(
        0.5, 0.5, reason, ha="center", va="center", fontsize=8, color="#444444", wrap=True, transform=axis.transAxes
    )
    axis.set_axis_off()


def _heading(word: HeadWords) -> str:
    return f"head {word.head.name}" + ("" if word.scale is None else f"\n{_scale(word.scale)}")


def _scale(scale: ScaleChange) -> str:
    share = "" if scale.share is None else f", changes {scale.share:.0%}"
    return f"scale {scale.low:.1f} to {scale.high:.1f}{share}"


def _visible(token: str) -> str:
    """A token with its spaces and line ends to be seen, and shortened."""
    shown = token.replace("\n", "⏎").replace("\t", "⇥").replace(" ", "␣").replace("$", r"\$")
    return shown if len(shown) <= _LONGEST else f"{shown[: _LONGEST - 1]}…"
