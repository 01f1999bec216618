"""The tokens that edits promote and suppress, one panel per head."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from headedit.edits.arguments import as_list
from headedit.edits.values import whole_number
from headedit.errors import HeadEditError
from headedit.interpret.evidence.agreement import check_column
from headedit.interpret.evidence.causal import HeadEffects
from headedit.interpret.evidence.heads import Head
from headedit.interpret.evidence.tokens import HeadWords, ScaleChange, TokenChanges
from headedit.interpret.labels import axis_label
from headedit.interpret.palette import COLOURS, INK
from headedit.interpret.plots.heading import Subtitle, put_heading
from headedit.io.describe import describe

if TYPE_CHECKING:
    import pandas  # type: ignore[import-untyped,unused-ignore]

_ACROSS = 4
_LONGEST = 14


def tokens(
    words: Sequence[HeadWords],
    *,
    show: Literal["weights", "measured"] | None = None,
    top: int = 5,
    most: int = 12,
    effects: "HeadEffects | pandas.DataFrame | None" = None,
    title: str | None = None,
    subtitle: Subtitle = True,
) -> Figure:
    """Draws the largest changes of logits as bars, one panel per head.

    Args:
        words: what ``headedit.tokens`` returned.
        show: as read from the weights, or as measured on data; by default the latter if something was measured.
        top: number of tokens promoted, and of tokens suppressed.
        most: the largest number of heads.
        effects: what ``headedit.leave_one_out`` or ``headedit.evidence`` returned: the heads whose edit has the largest
            effect on the loss come first. Without it, those that change a logit most, as measured, or with the longest
            offset.
        title: by default the subject, and how many heads are left out.
        subtitle: True for the model; False for none; or a text.

    Returns:
        A figure with a panel for each head: above it its name, its effect where it is given, and where it has a tuned
        scale the range of its factors and what share of the head's output they change. A panel without bars says why.
        Bars are in logits above their mean over the vocabulary. Those measured on data share one axis; those read from
        the weights are known up to a positive factor, so they can be compared only within a panel.

    Raises:
        HeadEditError: there are no heads, or ``measured`` is given and nothing was measured.
    """
    words = as_list(words, "words", "what headedit.tokens returned")
    wrong = next((word for word in words if not isinstance(word, HeadWords)), None)
    if wrong is not None:
        raise HeadEditError(f"words: found {describe(wrong)} in it, expected what headedit.tokens returned.")
    if not words:
        raise HeadEditError("There is nothing to draw: no head is given.")
    for name, number in (("top", top), ("most", most)):
        if whole_number(number, name) < 1:
            raise HeadEditError(f"{name}: found {number}, expected 1 or more.")
    there = any(word.measured is not None for word in words)
    if show not in (None, "weights", "measured") or (show == "measured" and not there):
        what = "nothing was measured; give tokens() data" if show == "measured" else f"found {show!r}"
        raise HeadEditError(f"show: {what}. Possible: 'weights', and 'measured' after a measurement on data.")
    show = show or ("measured" if there else "weights")
    rises = _rises(effects)
    shown = sorted(words, key=lambda word: _order(word, show, rises), reverse=True)[:most]
    reach = max((_reach(word.measured, top) for word in shown), default=None) if show == "measured" else None
    across = min(_ACROSS, len(shown))
    down = math.ceil(len(shown) / across)
    size = (max(4.6, 2.75 * across), 1.1 + (0.9 + 0.36 * top) * down)
    figure, axes = plt.subplots(down, across, figsize=size, layout="constrained", squeeze=False)
    for axis, word in zip(axes.flat, shown, strict=False):
        changes: TokenChanges | None = getattr(word, show)
        axis.set_title(_heading(word, rises), fontsize=9)
        if changes is None:
            _empty(axis, word)
        else:
            _bars(axis, changes, top, reach)
    for axis in axes.flat[len(shown) :]:
        axis.set_axis_off()
    figure.supxlabel(
        f"{axis_label(f'logit_{show}', 80)}, against the mean over the vocabulary\n(right: promoted, left: suppressed)",
        fontsize=9,
    )
    by = "of largest effect" if rises else "that change most"
    more = f": the {len(shown)} of {len(words)} heads {by}" if len(words) > len(shown) else ""
    below = shown[0].model if subtitle is True else subtitle
    put_heading(figure, f"What the edits promote and suppress{more}" if title is None else title, below)
    return figure


def _rises(effects: Any) -> dict[tuple[str, int, int], float]:
    """The effect of every head, by kind, layer and head; empty where none are given."""
    if effects is None:
        return {}
    if isinstance(effects, HeadEffects):
        return {_place(head): rise for head, rise in zip(effects.heads, effects.effects.tolist(), strict=True)}
    check_column(effects, "effect")
    return {(row["kind"], int(row["layer"]), int(row["head"])): row["effect"] for row in effects.to_dict("records")}


def _place(head: Head) -> tuple[str, int, int]:
    return head.kind, head.layer, head.head


def _order(word: HeadWords, show: str, rises: Mapping[tuple[str, int, int], float]) -> float:
    """By what heads are put in order, the largest first."""
    if rises:
        effect = rises.get(_place(word.head), 0.0)
        return effect if math.isfinite(effect) else 0.0
    if show == "measured":
        return _reach(word.measured, 1)
    offset = word.head.effective("offset")
    return 0.0 if offset is None else offset.float().norm().item()


def _reach(changes: TokenChanges | None, top: int) -> float:
    """The largest change of a logit among those shown."""
    pairs = [] if changes is None else changes.promotes[:top] + changes.suppresses[:top]
    return max((abs(value) for _, value in pairs), default=0.0)


def _bars(axis: Axes, changes: TokenChanges, top: int, reach: float | None) -> None:
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
    widest = 1.1 * (reach or max(map(abs, values)) or 1.0)
    axis.set_xlim(-widest, widest)
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


def _heading(word: HeadWords, rises: Mapping[tuple[str, int, int], float]) -> str:
    rise = rises.get(_place(word.head))
    effect = "" if rise is None else f":  effect {rise:.2g} nats per token"
    return f"{word.head.name}{effect}" + ("" if word.scale is None else f"\n{_scale(word.scale)}")


def _scale(scale: ScaleChange) -> str:
    share = "" if scale.share is None else f":\nchanges {scale.share:.0%} of the head's output"
    return f"scale {scale.low:.1f} to {scale.high:.1f}{share}"


def _visible(token: str) -> str:
    """A token with visible spaces and line ends, shortened."""
    shown = token.replace("\n", "⏎").replace("\t", "⇥").replace(" ", "␣").replace("$", r"\$")
    return shown if len(shown) <= _LONGEST else f"{shown[: _LONGEST - 1]}…"
