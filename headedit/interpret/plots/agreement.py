"""The agreement scatter: cheap signs of an important head against the measured effect of its edit."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from headedit.errors import HeadEditError
from headedit.interpret.evidence.agreement import agreement as correlations
from headedit.interpret.evidence.agreement import check_column
from headedit.interpret.labels import LABELS, axis_label, head_name
from headedit.interpret.palette import COLOURS, FAINT, GRID, INK
from headedit.interpret.plots.heading import Subtitle, put_heading

if TYPE_CHECKING:
    import pandas  # type: ignore[import-untyped,unused-ignore]

_TYPES = (  # whether a head has an offset and a scale, what that is called, and its marker
    ((True, True), "both", "offset and scale", "D"),
    ((True, False), "offset", "offset", "o"),
    ((False, True), "scale", "scale", "^"),
    ((False, False), "reference", "of size 0", "s"),
)
_NAMED = 3


def agreement(
    evidence: "pandas.DataFrame",
    signs: Sequence[str] = ("contribution", "attribution", "integrated"),
    effect: str = "effect",
    title: str | None = None,
    *,
    subtitle: Subtitle = True,
) -> Figure:
    """Draws every sign against the causal effect, for the heads with an open gate.

    Args:
        evidence: the frame that ``headedit.evidence`` returns.
        signs: the columns on the horizontal axes, one panel each.
        effect: the column on the vertical axis, such as ``effect`` or ``patch_edited``.
        title: by default the question, and the number of heads.
        subtitle: True for the model and the number of examples, as the frame's ``attrs`` have them; False for none; or
            a text.

    Returns:
        A figure with a panel for each sign: a point per head, marked by what its edit holds; where the effect has a
        standard error, bars of one in either direction. Below a panel is the number of heads that have no finite number
        there, such as the share of a head without an output. Above each panel is Spearman's rank correlation ρ, and the
        heads with the largest effect are named.

    Raises:
        HeadEditError: there is no such column, no sign is given, or no head is open.
    """
    for column in (*signs, effect):
        check_column(evidence, column)
    rows = evidence[evidence["open"]]
    if not signs or not len(rows):
        raise HeadEditError("There is nothing to draw: " + ("no head is open." if signs else "no sign is named."))
    ranks = correlations(rows, list(dict.fromkeys([*signs, effect])))[effect]
    size = (2.1 + 2.9 * len(signs), 3.9)
    figure, axes = plt.subplots(1, len(signs), figsize=size, layout="constrained", sharey=True, squeeze=False)
    for axis, sign in zip(axes[0], signs, strict=True):
        lost = _points(axis, rows, sign, effect)
        rho = ranks[sign]
        axis.set_title(f"ρ = {rho:+.2f}" if numpy.isfinite(rho) else "ρ undefined: no variation", fontsize=11)
        axis.set_xlabel(_axis_label(sign) + (f"\n(without a finite number, not drawn: {lost})" if lost else ""))
    axes[0, 0].set_ylabel(_axis_label(effect))
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=max(1, len(handles)), frameon=False, fontsize=9)
    name = f"Do estimates agree with the measured effect? The {len(rows)} of {len(evidence)} heads with an open gate"
    count = evidence.attrs.get("examples")
    parts = [evidence.attrs.get("model"), f"measured on {count} examples" if count else ""]
    below = "  ·  ".join(filter(None, parts)) if subtitle is True else subtitle
    put_heading(figure, name if title is None else title, below)
    return figure


def _points(axis: Axes, rows: "pandas.DataFrame", sign: str, effect: str) -> int:
    """Draws the heads; returns how many of them have no place, as a number is not finite."""
    x, y = rows[sign].to_numpy(float), rows[effect].to_numpy(float)
    if effect == "effect":
        errors = rows["effect_error"].to_numpy(float)
        axis.errorbar(x, y, yerr=errors, fmt="none", ecolor=FAINT, elinewidth=0.9, zorder=1)
    has = [(offset > 0, scale > 0) for offset, scale in zip(rows["offset_norm"], rows["scale_norm"], strict=True)]
    for kinds, quantity, label, marker in _TYPES:
        there = [i for i, kind in enumerate(has) if kind == kinds]
        if there:
            axis.scatter(
                x[there],
                y[there],
                s=34,
                c=COLOURS[quantity],
                marker=marker,
                edgecolors="white",
                linewidths=0.5,
                zorder=2,
                label=f"{label} ({len(there)})",
            )
    axis.axhline(0, color=INK, linewidth=0.8, zorder=0)
    axis.margins(x=0.2, y=0.1)
    for i in numpy.argsort(-y)[:_NAMED]:
        if numpy.isfinite(x[i]) and numpy.isfinite(y[i]):
            kind = rows["kind"].iloc[i]
            name = head_name(rows["layer"].iloc[i], rows["head"].iloc[i])
            name += "" if kind == "attention" else f" {kind}"
            axis.annotate(name, (x[i], y[i]), xytext=(5, 4), textcoords="offset points", fontsize=8)
    axis.grid(color=GRID, linewidth=0.6)
    axis.set_axisbelow(True)
    axis.locator_params(axis="x", nbins=5)
    return int((~(numpy.isfinite(x) & numpy.isfinite(y))).sum())


def _axis_label(column: str) -> str:
    """The label of a column; of one that somebody added, its name."""
    return axis_label(column) if column in LABELS else column
