"""Pictures of what edits cost: by layers, heads and sequence length, on disk, and in a routed batch."""

from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from headedit.bench.plots.axes import check_rows
from headedit.bench.results import Row
from headedit.interpret.labels import axis_label, label, short
from headedit.interpret.palette import COLOURS, GRID, INK

_SWEEPS = {"layers": "layers", "heads": "heads_per_layer", "tokens": "tokens_per_sequence"}
_REFERENCES = {"step": "the upper bound", "forward": "the bare model"}


def scaling(rows: Sequence[Row]) -> Figure:
    """Draws how cost scales along each sweep.

    Args:
        rows: of ``scaling_cost``.

    Returns:
        A figure with a column per sweep. At the top, a training step next to that of the upper bound and a forward pass
        next to the bare model's, in milliseconds; in the middle, the two ratios; at the bottom, the size of the edits'
        files, whole and hardened.

    Raises:
        HeadEditError: there are no rows.
    """
    check_rows(rows)
    sweeps = [sweep for sweep in _SWEEPS if any(row["sweep"] == sweep for row in rows)]
    figure, axes = plt.subplots(
        3, len(sweeps), figsize=(1.5 + 3.2 * len(sweeps), 8.0), layout="constrained", squeeze=False, sharey="row"
    )
    for column, sweep in enumerate(sweeps):
        of = [row for row in rows if row["sweep"] == sweep]
        times, ratios, disk = axes[:, column]
        for workload, reference in _REFERENCES.items():
            milliseconds = [row[f"{workload}_ms"] for row in of]
            least = [row[f"{workload}_ms"] / row[f"{workload}_ratio"] for row in of]
            name = short(workload)
            _line(times, of, milliseconds, workload, name)
            _line(times, of, least, "reference", f"{name} of {reference}", dashed=True)
            _line(ratios, of, [row[f"{workload}_ratio"] for row in of], workload, f"{name} over {reference}")
        _line(disk, of, [row["bytes"] / 1024 for row in of], "file", short("bytes"))
        _line(disk, of, [row["hardened_bytes"] / 1024 for row in of], "hardened_file", short("hardened_bytes"))
        for axis, scale in ((times, "log"), (ratios, "linear"), (disk, "log")):
            _axis(axis, of, scale)
        disk.set_xlabel(axis_label(_SWEEPS[sweep]))
    for axis in axes[1]:
        _around_one(axis)
    for axis, quantity in zip(axes[:, 0], ("time", "time_ratio", "bytes"), strict=True):
        axis.set_ylabel(axis_label(quantity))
    for axis in axes[:, -1]:
        axis.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.suptitle("What edits of every head cost, by size of the model and the batch", fontsize=12)
    return figure


def adapters(rows: Sequence[Row]) -> Figure:
    """Draws the cost of a routed batch by the number of adapters on the model.

    Args:
        rows: of ``route_cost``.

    Returns:
        A figure with two panels: a forward pass over that with one adapter for all rows and over the bare model's;
        and in milliseconds the forward pass, entering ``route`` and adding an adapter.

    Raises:
        HeadEditError: there are no rows.
    """
    check_rows(rows)
    renamed = [{**row, "value": row["adapters"]} for row in rows]
    figure, (ratios, times) = plt.subplots(1, 2, figsize=(9.0, 4.2), layout="constrained")
    _line(ratios, renamed, [row["against_one"] for row in rows], "against_one", short("against_one"))
    _line(ratios, renamed, [row["against_bare"] for row in rows], "forward", short("against_bare"))
    _around_one(ratios)
    ratios.set_ylabel(f"{short('forward')}: {axis_label('time_ratio')}")
    curves = (
        ("forward_ms", "forward"),
        ("enter_first_ms", "enter_first_ms"),
        ("enter_ms", "enter_ms"),
        ("add_ms", "add_ms"),
    )
    for key, quantity in curves:
        measured = [row for row in renamed if row[key] is not None]
        _line(times, measured, [row[key] for row in measured], quantity, short(quantity))
    times.set_ylabel(label("time"))
    for axis, scale in ((ratios, "linear"), (times, "log")):
        _axis(axis, renamed, scale)
        axis.set_xlabel(axis_label("adapters"))
        axis.legend(frameon=False, fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)
    figure.suptitle(f"A routed batch of {rows[0]['rows']} rows", fontsize=12)
    return figure


def _line(
    axis: Axes, rows: Sequence[Row], values: Sequence[float], quantity: str, name: str, *, dashed: bool = False
) -> None:
    style: dict[str, Any] = (
        {"linestyle": "--", "linewidth": 1.0} if dashed else {"marker": "o", "markersize": 4, "linewidth": 1.4}
    )
    axis.plot([row["value"] for row in rows], values, color=COLOURS[quantity], label=name, **style)


def _around_one(axis: Axes) -> None:
    """Draws a line at one and widens the axis, so that noise of 1 % looks small; to be called after all curves."""
    axis.axhline(1.0, color=INK, linewidth=0.8)
    low, high = axis.get_ylim()
    axis.set_ylim(min(low, 0.95), max(high, 1.05))


def _axis(axis: Axes, rows: Sequence[Row], scale: str) -> None:
    axis.set_xscale("log")
    axis.set_yscale(scale)
    values = sorted({row["value"] for row in rows})
    axis.set_xticks(values, [f"{value:,}" for value in values])
    axis.set_xticks([], minor=True)
    axis.grid(axis="y", color=GRID, linewidth=0.6)
