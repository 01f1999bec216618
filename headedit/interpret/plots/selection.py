"""Stability selection: how often halves of the examples select each gate, and which gates are interchangeable."""

from os import PathLike
from typing import Any, Protocol

import matplotlib.pyplot as plt
import numpy
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from headedit.edits.gate_set import GateIndex
from headedit.errors import HeadEditError
from headedit.interpret.head_map import Edits, HeadMap
from headedit.interpret.labels import axis_label, head_name
from headedit.interpret.palette import COLOURS, INK
from headedit.interpret.plots.heading import Subtitle, put_heading
from headedit.interpret.plots.heatmap import add_bar, draw, mark_groups, mark_missing
from headedit.interpret.plots.held_out import check_run
from headedit.runs.run import Run
from headedit.runs.selection import Selection

_MOST = 24


class HasSelection(Protocol):
    """Anything with a selection, such as the run that ``fit`` returns."""

    @property
    def selection(self) -> Selection | None:
        """How sure each gate is."""

    @property
    def edits(self) -> Any:
        """The handle; None for a run that was read from disk."""

    @property
    def output_dir(self) -> Any:
        """The folder of the run."""


def selection(
    run: "HasSelection | str | PathLike[str]",
    *,
    kind: str | None = None,
    title: str | None = None,
    subtitle: Subtitle = True,
) -> Figure:
    """Draws how sure the heads of ``fit(..., bootstrap=20)`` are.

    Args:
        run: what ``fit`` returned, or its folder.
        kind: the kind of site in the maps; by default attention, or else the first.
        title: by default the number of chosen gates.
        subtitle: True for model, task and recipe; False for none; or a text.

    Returns:
        A figure: a map per vector, layers × heads, of the share of the halves that select a gate, with a frame around
        the chosen ones; and the gates that are selected most often, in order, with the threshold. Gates with the same
        letter are interchangeable: the halves select one or the other.

    Raises:
        HeadEditError: there is no such run, it was made without ``bootstrap``, or the edits have no site of the kind.
    """
    named = Run.read(run) if isinstance(run, str | PathLike) else run
    check_run(named, "selection", "edits", "output_dir")
    found = named.selection
    if found is None:
        raise HeadEditError(
            f"{named.output_dir}: this run was made without halves; fit with bootstrap=20 to see how sure the heads "
            "are."
        )
    source: Edits = named.output_dir if named.edits is None else named.edits
    heads = HeadMap.of(source)
    kind = heads.shown_kinds(kind)[0]
    vectors = sorted({vector for edit in heads.module for vector in edit.gated_vectors()})
    grids = {vector: selection_grid(heads, found, kind, vector) for vector in vectors}
    layers, width = next(iter(grids.values())).shape
    height = max(1.6, min(5.0, 0.32 * layers))
    figure = plt.figure(figsize=(8.0, height + 4.0), layout="constrained")
    rows = figure.add_gridspec(2, len(vectors), height_ratios=(height + 0.8, 2.6))
    axes = [figure.add_subplot(rows[0, i]) for i in range(len(vectors))]
    chosen = set(found.chosen)
    for axis, vector in zip(axes, vectors, strict=True):
        image = draw(axis, grids[vector])
        for site, first, layer in _places(heads, kind):
            for gate in chosen:
                if gate.site == site and gate.vector == vector:
                    axis.add_patch(_frame(layer, first + gate.head, vector))
        mark_groups(axis, heads.group_size(kind), width)
        axis.set_title(f"{vector} gates", fontsize=10)
    axes[0].set_ylabel("layer")
    add_bar(image, axes, axis_label("proportion", 24))
    _ranked(figure.add_subplot(rows[1, :]), heads, found)
    handles = [
        Line2D([], [], color=COLOURS[vector], marker="o", linestyle="", label=f"{vector}, chosen") for vector in vectors
    ]
    handles.append(Line2D([], [], color=INK, marker="o", markerfacecolor="none", linestyle="", label="not chosen"))
    if found.chosen:
        handles.append(Line2D([], [], color=INK, linestyle="--", label=f"threshold {found.threshold:.2g}"))
    figure.legend(
        handles=[*handles, *mark_missing(list(grids.values()))],
        loc="outside lower center",
        frameon=False,
        fontsize=9,
        ncols=len(handles) + 1,
    )
    count = len(found.chosen)
    counted = f"{count} gates are sure" if count > 1 else "1 gate is sure" if count else "No gate is sure"
    by = f"{found.halves} halves of the examples, at most {found.rate:.0%} of the sure gates false"
    put_heading(figure, f"{counted}  ({by})" if title is None else title, subtitle, [run])
    return figure


def selection_grid(heads: HeadMap, found: Selection, kind: str, vector: str) -> Any:
    """The share of the halves that select each gate on a vector, [layers, heads], NaN where there is none."""
    grid = numpy.where(heads.has_head(kind).numpy(), 0.0, numpy.nan)
    places = {site: (layer, first) for site, first, layer in _places(heads, kind)}
    for gate, proportion in found.proportions.items():
        if gate.vector == vector and gate.site in places:
            layer, first = places[gate.site]
            grid[layer, first + gate.head] = proportion
    return grid


def gate_name(heads: HeadMap, gate: GateIndex) -> str:
    """Layer and head of a gate, as ``L3H5``; with the kind of its site where there are several."""
    site = heads.module.sites[gate.site]
    first = next(first for found, first, _ in _places(heads, site.kind) if found == gate.site)
    several = len(heads.module.kinds()) > 1
    return head_name(site.layer, first + gate.head) + (f" {site.kind}" if several else "")


def _places(heads: HeadMap, kind: str) -> list[tuple[int, int, int]]:
    """Index of every site of a kind, the column of its first head, and its layer."""
    numbers = {site.name: number for number, site in enumerate(heads.module.sites)}
    return [(numbers[site.name], first, site.layer) for site, _, first in heads.module.columns(kind)]


def _frame(layer: int, head: int, vector: str) -> Rectangle:
    return Rectangle((head - 0.5, layer - 0.5), 1, 1, fill=False, edgecolor=COLOURS[vector], linewidth=2.2, zorder=3)


def _ranked(axis: Axes, heads: HeadMap, found: Selection) -> None:
    """The gates that are selected most often, a dot each, with the threshold and the letters of groups."""
    shown = found.gates[:_MOST]
    letters = {gate: chr(ord("A") + i % 26) for i, group in enumerate(found.groups) for gate in group}
    for place, row in enumerate(shown):
        colour = COLOURS[row.gate[1]]
        face = colour if row.chosen else "none"
        axis.plot([place], [row.proportion], marker="o", color=colour, markerfacecolor=face, linestyle="")
        if row.gate in letters:
            axis.annotate(
                letters[row.gate],
                (place, row.proportion),
                xytext=(0, 6),
                textcoords="offset points",
                ha="center",
                fontsize=8,
            )
    if found.chosen:
        axis.axhline(found.threshold, color=INK, linestyle="--", linewidth=1.2)
    names = [gate_name(heads, GateIndex(*row.gate)) for row in shown]
    axis.set_xticks(range(len(shown)), names, rotation=60 if len(shown) > 12 else 0, fontsize=8)
    axis.set_xlim(-0.6, max(1, len(shown)) - 0.4)
    axis.set_ylim(0, 1.12)
    axis.set_yticks([0, 0.5, 1])
    axis.set_xlabel("head" + (f"  (the {_MOST} gates most often selected)" if len(found.gates) > _MOST else ""))
    axis.set_ylabel("share of the halves")
