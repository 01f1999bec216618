"""The tables and files that ``headedit bench``, ``bench scaling`` and ``bench route`` write."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.text import Text

from headedit.cli.next_step import say_next
from headedit.cli.shared import console, print_files, print_rows, say_plain, write_json
from headedit.io.tables import format_cell, rich_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from headedit.bench.cost import Cost

_HEADER = ["workload", "method", "median", "tokens/s", "ratio", "quartiles", "allowed"]


def print_cost(cost: "Cost", name: str) -> None:
    """Prints what ``measure_cost`` found; a ratio above the largest that is allowed is in red."""
    shape, machine = cost.shape, cost.machine
    of_shape = f": {shape.layers} layers of width {shape.hidden}, {shape.heads} heads, {shape.dtype}"
    facts = [
        ("model", name + ("" if cost.given else of_shape)),
        ("batch", f"{shape.batch} × {shape.tokens} tokens"),
        ("measured on", f"{machine['device']}, {machine['threads']} threads, torch {machine['torch']}"),
        ("attention", machine["attention"]),
        ("load average", f"{machine['load_before']} before, {machine['load_after']} after"),
        ("freed memory", f"{machine['freed_memory']} by the allocator"),
        *((f"ratio to {name}", "; ".join(workloads)) for name, workloads in _compared(cost.rows).items()),
    ]
    left_out = [(f"left out: {method}", reason) for method, reason in cost.left_out.items()]
    runs = sorted({row["runs"] for row in cost.rows if row["against"] and row["runs"]}, reverse=True)
    print_rows(f"headedit bench (medians of {' or '.join(map(str, runs or [cost.repeats]))})", facts + left_out)
    console.print(rich_table("Times, memory and operators", _HEADER, map(_cells, cost.rows), no_wrap=True))
    say_plain("ratio: of medians, to the method named above; allowed: the largest that is within our limits, else red.")


def print_measured(title: str, rows: Sequence[dict[str, Any]], keys: Sequence[str] | None = None) -> None:
    """Prints the rows of ``scaling_cost`` or ``route_cost``; ``keys`` chooses the columns, by default all."""
    keys = list(rows[0]) if keys is None else keys
    header = [key.replace("_", "\n") for key in keys]
    console.print(rich_table(title, header, [[_shown(row[key]) for key in keys] for row in rows]))


def write_measured(folder: Path, name: str, rows: Sequence[dict[str, Any]], figure: "Figure") -> None:
    """Writes rows as JSON and their picture as PNG."""
    files = [folder / f"{name}.json", folder / f"{name}.png"]
    write_json(files[0], {"rows": list(rows)})
    figure.savefig(files[1], dpi=150)
    print_files(files)
    say_next(f"look at {files[1]}")


def print_read(files: Sequence[Path]) -> None:
    """Prints which files were written, and which of them to read."""
    print_files(list(files))
    say_next(f"read {next(file for file in files if file.suffix == '.md')}")


def _compared(rows: Sequence[dict[str, Any]]) -> dict[str, list[str]]:
    """The workloads by the method that others are compared with."""
    workloads: dict[str, list[str]] = {}
    for row in rows:
        if row["against"] is not None and row["workload"] not in workloads.setdefault(row["against"], []):
            workloads[row["against"]].append(row["workload"])
    return workloads


def _cells(row: dict[str, Any]) -> list[str | Text]:
    ratio, at_most = row["ratio"], row["at_most"]
    measured = row["value"] if ratio is None else ratio
    shown = "" if ratio is None else f"{ratio:.3f}"
    return [
        row["workload"],
        row["method"],
        f"{row['value']:,.1f} {row['unit']}",
        "" if row["tokens_per_second"] is None else f"{row['tokens_per_second']:,.0f}",
        Text(shown, style="red") if at_most is not None and measured > at_most else shown,
        "" if row["low"] is None else f"{row['low']:.3f} – {row['high']:.3f}",
        "" if at_most is None else f"{at_most:,g}{' ms' if ratio is None else ''}",
    ]


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3f}" if abs(value) < 10 else f"{value:,.1f}"
    return format_cell(value)
