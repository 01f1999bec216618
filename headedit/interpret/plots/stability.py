"""Stability over seeds: which heads each seed chose, how far the seeds agree, and how their scores vary."""

from collections.abc import Mapping
from dataclasses import asdict
from os import PathLike
from pathlib import Path
from typing import Any, Protocol

import matplotlib.pyplot as plt
import numpy
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import BoundaryNorm, ListedColormap, to_hex
from matplotlib.figure import Figure

from headedit.errors import HeadEditError
from headedit.interpret.head_map import HeadMap
from headedit.interpret.labels import axis_label, short, with_error
from headedit.interpret.palette import COLOURS, SEQUENTIAL
from headedit.interpret.plots.heading import Subtitle, put_heading
from headedit.interpret.plots.heatmap import add_bar, draw, mark_missing
from headedit.interpret.plots.held_out import check_run
from headedit.interpret.plots.selection import selection_grid
from headedit.runs.record import read_record
from headedit.runs.selection import Selection
from headedit.runs.stability import Spread


class HasRecord(Protocol):
    """Anything with the record and the folder of a run, such as the run that ``fit`` returns."""

    @property
    def record(self) -> Mapping[str, Any]:
        """Plain data about the run."""

    @property
    def output_dir(self) -> Path:
        """Its folder, with the other seeds' runs in ``seed-1``, ``seed-2`` ..."""


def stability(
    run: "HasRecord | str | PathLike[str]",
    *,
    kind: str | None = None,
    title: str | None = None,
    subtitle: Subtitle = True,
) -> Figure:
    """Draws how far the runs of ``fit(..., seeds=3)`` agree.

    Args:
        run: what ``fit`` returned, or its folder, which holds the edits of every seed.
        kind: the kind of site in the map; by default attention, or else the first.
        title: by default the number of seeds.
        subtitle: True for model, task and recipe; False for none; or a text.

    Returns:
        A figure: a map, layers × heads, of how many seeds chose a head; the Jaccard index of the chosen heads, the mean
        over pairs of seeds, next to that of random sets of the same sizes; the number of heads per seed; and, where
        it was measured, the validation loss and the metric of every seed with their mean. After ± is the standard
        deviation of the seeds. Where the run was made with ``bootstrap``, a second map shows the share of the halves of
        the examples that select the head, by its offset or its scale, whichever is more often.

    Raises:
        HeadEditError: there is no such run, it has a single seed, or the edits of a seed are missing.
    """
    folder, record = _read(run)
    found, found_selection = record["stability"], record.get("selection")
    found_selection = None if found_selection is None else Selection.from_dict(found_selection)
    seeds = found["seeds"]
    sources = [HeadMap.of(folder if i == 0 else folder / f"seed-{seed}") for i, seed in enumerate(seeds)]
    kind = sources[0].shown_kinds(kind)[0]
    chosen = numpy.stack([source.open_heads(kind).numpy() for source in sources]).sum(0)
    grid = numpy.where(sources[0].has_head(kind).numpy(), chosen.astype(float), numpy.nan)
    spreads = [(key, found[key]) for key in ("validation_loss", "metric") if found.get(key)]
    height = max(1.6, min(6.5, 0.32 * grid.shape[0]))
    selected = None if found_selection is None else _probabilities(sources[0], found_selection, kind)
    maps = 1 if selected is None else 2
    figure = plt.figure(figsize=(8.0, height + 3.8), layout="constrained")
    rows = figure.add_gridspec(2, maps * (2 + len(spreads)), height_ratios=(height + 0.8, 2.4))
    half = 2 + len(spreads)
    _map(figure, figure.add_subplot(rows[0, :half]), grid, len(seeds))
    if selected is not None:
        _selected(figure.add_subplot(rows[0, half:]), selected)
    below = rows[1, :].subgridspec(1, half)
    _agreement(figure.add_subplot(below[0, 0]), found)
    columns = [("heads", asdict(Spread.of([float(number) for number in found["heads"]]))), *spreads]
    for column, (key, spread) in enumerate(columns, start=1):
        text = f"{with_error(spread['mean'], spread['std'])}\nmean ± st. dev."
        _by_seed(figure.add_subplot(below[0, column]), seeds, spread["values"], text, key, from_zero=key == "heads")
    name = f"{len(seeds)} seeds: do they choose the same heads?"
    put_heading(figure, name if title is None else title, subtitle, [run])
    return figure


def _probabilities(heads: HeadMap, found: Selection, kind: str) -> Any:
    """The share of the halves that select a head, by the vector that is selected more often, [layers, heads]."""
    vectors = sorted({vector for edit in heads.module for vector in edit.gated_vectors()})
    return numpy.stack([selection_grid(heads, found, kind, vector) for vector in vectors]).max(0)


def _selected(axis: Axes, grid: Any) -> None:
    image = draw(axis, grid)
    axis.set_xlabel("head")
    axis.set_title("Selection probability, first seed", fontsize=10)
    add_bar(image, [axis], "share of the halves of the\nexamples that select the head")


def _read(run: "HasRecord | str | PathLike[str]") -> tuple[Path, dict[str, Any]]:
    if isinstance(run, str | PathLike):
        folder = Path(run)
        record: Any = read_record(folder)
    else:
        check_run(run, "output_dir", "record")
        folder, record = run.output_dir, run.record
    found = record.get("stability") if isinstance(record, Mapping) else None
    if found is None:
        raise HeadEditError(f"{folder}: this run has a single seed; fit with seeds=3 to see how stable the heads are.")
    return folder, dict(record)


def _map(figure: Figure, axis: Axes, grid: Any, seeds: int) -> None:
    colours = ListedColormap([to_hex(colormaps[SEQUENTIAL](i / seeds)) for i in range(seeds + 1)])
    norm = BoundaryNorm([i - 0.5 for i in range(seeds + 2)], seeds + 1)
    image = draw(axis, grid, colours=colours, norm=norm)
    axis.set_xlabel("head")
    axis.set_ylabel("layer")
    there, every = int((grid > 0).sum()), int((grid == seeds).sum())
    axis.set_title(f"Heads chosen by any seed: {there},  by every seed: {every}", fontsize=10)
    add_bar(image, [axis], "seeds that chose the head", ticks=range(seeds + 1))
    handles = mark_missing([grid])
    if handles:
        figure.legend(handles=handles, loc="outside lower center", frameon=False, fontsize=9)


def _agreement(axis: Axes, found: Mapping[str, Any]) -> None:
    values = [found["jaccard"], found["chance"]]
    bars = axis.bar(["seeds", short("chance")], values, color=[COLOURS["jaccard"], COLOURS["chance"]], width=0.6)
    axis.bar_label(bars, [f"{value:.2f}" for value in values], fontsize=9)
    axis.set_ylim(0, 1.25)
    axis.set_yticks([0, 0.5, 1])
    axis.set_ylabel(short("jaccard"))
    axis.set_title("agreement of the heads,\nmean of the pairs", fontsize=9)


def _by_seed(axis: Axes, seeds: list[int], values: list[float], title: str, quantity: str, *, from_zero: bool) -> None:
    axis.plot(range(len(seeds)), values, color=COLOURS[quantity], marker="o", linestyle="")
    axis.axhline(sum(values) / len(values), color=COLOURS["mean"], linestyle="--", linewidth=1.2)
    axis.set_xticks(range(len(seeds)), [str(seed) for seed in seeds])
    axis.set_xlim(-0.5, len(seeds) - 0.5)
    axis.margins(y=0.25)
    if from_zero:
        axis.set_ylim(0, 1.15 * max(1, *values))
    axis.set_xlabel("seed")
    axis.set_ylabel(axis_label(quantity, 18))
    axis.locator_params(axis="y", nbins=4, integer=quantity == "heads")
    axis.ticklabel_format(axis="y", useOffset=False)
    axis.set_title(title, fontsize=9)
