"""The tokens that edits promote and suppress, one panel per head."""

import math
from collections.abc import Sequence
from typing import Literal

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from headedit.errors import HeadEditError
from headedit.interpret.evidence.tokens import HeadWords, ScaleChange, TokenChanges
from headedit.interpret.labels import axis_label
from headedit.interpret.palette import COLOURS, INK

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
    """Draws the largest changes of logits as bars, one panel per head.

    Args:
        words: what ``headedit.tokens`` returned.
        show: as read from the weights, or as measured on data; by default the latter if something was measured.
        top: number of tokens promoted, and of tokens suppressed.
        most: the largest number of heads, from the first.
        title: by default the subject, and how many heads are left out.

    Returns:
        A figure with a panel for each head: above it layer.head, and where it has a tuned scale the range of its
        factors and how much of the output they change. A panel without bars says why. Bars are in logits above their
        mean over the vocabulary; those read from the weights are known up to a positive factor, so they can be compared
        only within a panel.

    Raises:
        HeadEditError: there are no heads, or ``measured`` is given and nothing was measured.
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
        changes: TokenChanges | None = getattr(word, show)
        axis.set_title(_heading(word), fontsize=9)
        if changes is None:
            _empty(axis, word)
        else:
            _bars(axis, changes, top)
    for axis in axes.flat[len(shown) :]:
        axis.set_axis_off()
    figure.supxlabel(
        f"{axis_label(f'logit_{show}', 80)}, against the mean over the vocabulary\n(right: promoted, left: suppressed)",
        fontsize=9,
    )
    more = f" (first {len(shown)} of {len(words)} heads)" if len(words) > len(shown) else ""
    figure.suptitle(title or f"What the edits promote and suppress{more}", fontsize=12)
    return figure


def _bars(axis: Axes, changes: TokenChanges, top: int) -> None:
    pairs = changes.promotes[:top] + changes.suppresses[:top][::-1]
    values = [value for _, value in pairs]
    axis.barh(
        range(len(pairs)), values, color=[COLOURS["rise" if value > 0 else "fall"] for value in values], height=0.75
    )
    for i, (token, value) in enumerate(pairs):
        side, end = ("right", -4) if value > 0 else ("left", 4)
        axis.annotate(
            _visible(token), (0, i), xytext=(end, 0), textcoords="offset points", ha=side, va="center", fontsize=8
        )
    reach = 1.1 * max(map(abs, values))
    axis.set_xlim(-reach, reach)
    axis.invert_yaxis()
    axis.axvline(0, color=INK, linewidth=0.8)
    axis.set_yticks([])
    axis.locator_params(axis="x", nbins=5)
    axis.tick_params(axis="x", labelsize=7)
    axis.spines[["top", "right", "left"]].set_visible(False)


def _empty(axis: Axes, word: HeadWords) -> None:
    reason = word.obstacle or "no offset; a scale can only be\nmeasured: tokens(..., data)"
    axis.text(0.5, 0.5, reason, ha="center", va="center", fontsize=8, color=INK, wrap=True, transform=axis.transAxes)
    axis.set_axis_off()


def _heading(word: HeadWords) -> str:
    return f"head {word.head.name}" + ("" if word.scale is None else f"\n{_scale(word.scale)}")


def _scale(scale: ScaleChange) -> str:
    share = "" if scale.share is None else f", changes {scale.share:.0%}"
    return f"scale {scale.low:.1f} to {scale.high:.1f}{share}"


def _visible(token: str) -> str:
    """A token with visible spaces and line ends, shortened."""
    shown = token.replace("\n", "⏎").replace("\t", "⇥").replace(" ", "␣").replace("$", r"\$")
    return shown if len(shown) <= _LONGEST else f"{shown[: _LONGEST - 1]}…"
