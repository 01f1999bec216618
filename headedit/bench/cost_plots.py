"""Pictures of what edits cost: against layers, heads and sequence length, on disk, and in a routed batch."""

from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from headedit.bench.recovery_plots import PALETTE
from headedit.errors import HeadEditError

Row = dict[str, Any]

_SWEEPS = {"layers": "layers", "heads": "heads a layer", "tokens": "tokens a sequence"}
_BLUE, _ORANGE, _GREEN = PALETTE[:3]
_GREY = "#444444"


def scaling(rows: Sequence[Row]) -> Figure:
    """How cost grows along each sweep.

    Args:
        rows: of ``headedit.bench.cost.scaling``.

    Returns:
        A figure with a column a sweep. Above, a training step beside its limit and a forward pass beside the bare
        model's, in milliseconds; in the middle, the two ratios; below, the bytes of edits on disk, whole and hardened.

    Raises:
        HeadEditError: there are no rows.
    """
    _check(rows)
    sweeps = [sweep for sweep in _SWEEPS if any(row["sweep"] == sweep for row in rows)]
    figure, axes = plt.subplots(
        3, len(sweeps), figsize=(1.5 + 3.2 * len(sweeps), 8.0), layout="constrained", squeeze=False, sharey="row"
    )
    for column, sweep in enumerate(sweeps):
        of = [row for row in rows if row["sweep"] == sweep]
        times, ratios, disk = axes[:, column]
        for work, colour, reference in (("step", _BLUE, "its limit"), ("forward", _ORANGE, "bare")):
            milliseconds = [row[f"{work}_ms"] for row in of]
            least = [row[f"{work}_ms"] / row[f"{work}_ratio"] for row in of]
            name = "training step" if work == "step" else "forward pass"
            _line(times, of, milliseconds, colour, name)
            _line(times, of, least, _GREY, reference, dashed=True)
            _line(ratios, of, [row[f"{work}_ratio"] for row in of], colour, f"{name} over {reference}")
        _line(disk, of, [row["bytes"] / 1024 for row in of], _GREEN, "whole")
        _line(disk, of, [row["hardened_bytes"] / 1024 for row in of], PALETTE[3], "hardened, 5 % of heads")
        for axis, scale in ((times, "log"), (ratios, "linear"), (disk, "log")):
            _axis(axis, of, scale)
        disk.set_xlabel(_SWEEPS[sweep])
    for axis in axes[1]:
        _around_one(axis)
    for axis, label in zip(axes[:, 0], ("milliseconds", "ratio of medians", "KiB on disk"), strict=True):
        axis.set_ylabel(label)
    for axis in axes[:, -1]:
        axis.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.suptitle("Cost of edits on every head", fontsize=12)
    return figure


def adapters(rows: Sequence[Row]) -> Figure:
    """A routed batch by the number of adapters on the model.

    Args:
        rows: of ``headedit.bench.cost.route_cost``.

    Returns:
        A figure with two panels: the ratio of a forward pass to one adapter for all rows and to the bare model; the
        time to enter ``route``, to add an adapter, and of the forward pass itself, in milliseconds.

    Raises:
        HeadEditError: there are no rows.
    """
    _check(rows)
    renamed = [{**row, "value": row["adapters"]} for row in rows]
    figure, (ratios, times) = plt.subplots(1, 2, figsize=(9.0, 4.2), layout="constrained")
    _line(ratios, renamed, [row["against_one"] for row in rows], _BLUE, "over one adapter")
    _line(ratios, renamed, [row["against_bare"] for row in rows], _ORANGE, "over the bare model")
    _around_one(ratios)
    ratios.set_ylabel("ratio of medians")
    curves = (
        ("forward_ms", "forward pass", _BLUE),
        ("enter_first_ms", "entering route, the first time", _ORANGE),
        ("enter_ms", "entering route again", _GREEN),
        ("add_ms", "adding one adapter", PALETTE[3]),
    )
    for key, label, colour in curves:
        there = [row for row in renamed if row[key] is not None]
        _line(times, there, [row[key] for row in there], colour, label)
    times.set_ylabel("milliseconds")
    for axis, scale in ((ratios, "linear"), (times, "log")):
        _axis(axis, renamed, scale)
        axis.set_xlabel("adapters on the model")
        axis.legend(frameon=False, fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)
    figure.suptitle(f"A routed batch of {rows[0]['rows']} rows", fontsize=12)
    return figure


def _line(
    axis: Axes, rows: Sequence[Row], values: Sequence[float], colour: str, label: str, *, dashed: bool = False
) -> None:
    style: dict[str, Any] = (
        {"linestyle": "--", "linewidth": 1.0} if dashed else {"marker": "o", "markersize": 4, "linewidth": 1.4}
    )
    axis.plot([row["value"] for row in rows], values, color=colour, label=label, **style)


def _around_one(axis: Axes) -> None:
    """A line at one, and an axis on which noise of a hundredth does not look like much; called once all is drawn."""
    axis.axhline(1.0, color=_GREY, linewidth=0.8)
    low, high = axis.get_ylim()
    axis.set_ylim(min(low, 0.95), max(high, 1.05))


def _axis(axis: Axes, rows: Sequence[Row], scale: str) -> None:
    axis.set_xscale("log")
    axis.set_yscale(scale)
    values = sorted({row["value"] for row in rows})
    axis.set_xticks(values, [f"{value:,}" for value in values])
    axis.set_xticks([], minor=True)
    axis.grid(axis="y", color="#dddddd", linewidth=0.6)


def _check(rows: Sequence[Row]) -> None:
    if not rows:
        raise HeadEditError("There are no rows, so there is nothing to draw.")
