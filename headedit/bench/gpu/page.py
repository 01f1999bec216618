"""The summary of all parts as one Markdown page."""

from collections.abc import Iterable
from itertools import groupby
from pathlib import Path
from typing import Any

from headedit.bench.gpu.record import FAILED, Data, failures, read_record
from headedit.bench.gpu.runner import LIMITS
from headedit.bench.results import Row
from headedit.io.tables import markdown_table
from headedit.training.memory_plan.memory import GIB, show


def page(folder: Path) -> str:
    """What the records in a folder hold: device, versions, commands, tests, medians and quartiles, and what is missing.

    Args:
        folder: of the records.
    """
    records = [data for part in LIMITS if (data := read_record(folder, part)) is not None]
    parts = [_title(records), _machine(records), "## Parts", _parts(records)]
    sections = {"tests": _tests, "cost": _cost, "decoding": _cost, "memory": _memory, "compare": _compare}
    for data in records:
        parts += sections[data["part"]](data)
    return "\n\n".join(parts) + "\n"


def _title(records: list[Data]) -> str:
    if any(data["settings"]["device"].startswith("cuda") for data in records):
        return "# Measured on a GPU"
    return "# The GPU bench, tried out on a CPU\n\nNo figure on this page is a GPU's."


def _machine(records: list[Data]) -> str:
    machines: list[Row] = [data["machine"] for data in records if data["machine"]]
    lines = []
    for machine in (m for i, m in enumerate(machines) if m not in machines[:i]):
        memory = f", {machine['memory'] / GIB:.0f} GiB" if "memory" in machine else ""
        versions = {name: version for name, version in machine.items() if name not in ("device", "memory")}
        said = ", ".join(f"{name} {version}" for name, version in versions.items() if version is not None)
        absent = ", ".join(name for name, version in versions.items() if version is None)
        lines.append(f"{machine['device']}{memory}: {said}." + (f" Not installed: {absent}." if absent else ""))
    return "\n\n".join(lines)


def _parts(records: list[Data]) -> str:
    rows: list[list[Any]] = []
    for data in records:
        settings = data["settings"]
        command = f"headedit bench gpu --parts {data['part']} "
        if data["part"] == "compare":
            command += f"--compare {settings['comparison']} --jobs {settings['jobs']}"
        else:
            command += f"--shapes {','.join(settings['shapes'])}"
        command += "" if settings["device"] == "cuda" else f" --device {settings['device']}"
        failed = failures(data)
        rows.append([data["part"], data["state"], f"`{command}`", len(data["items"]), len(failed), data["seconds"]])
    begun = {data["part"] for data in records}
    rows += [[part, "not begun", None, 0, 0, None] for part in LIMITS if part not in begun]
    table = markdown_table(["part", "state", "command", "items", "failed", "seconds"], rows, left=3)
    reasons = [f"{data['part']}: {data['reason']}" for data in records if data["reason"]]
    return "\n\n".join([table, *(f"```text\n{reason}\n```" for reason in reasons)])


def _tests(data: Data) -> list[str]:
    rows = [
        [name, item["outcome"], item["seconds"], "" if item["outcome"] == "passed" else _last_line(item["message"])]
        for name, item in data["items"].items()
    ]
    counts = {outcome: sum(row[1] == outcome for row in rows) for outcome in ("passed", "skipped", *FAILED)}
    said = ", ".join(f"{number} {outcome}" for outcome, number in counts.items() if number)
    return ["## Tests", said, markdown_table(["test", "outcome", "seconds", "why"], rows, left=2)]


def _cost(data: Data) -> list[str]:
    rows = [row for item in data["items"].values() for row in item.get("rows", [])]
    parts = [
        f"## {data['part'].capitalize()}",
        "Medians; ratios of medians, with the quartiles of the ratios within a round.",
    ]
    left_out = [f"Left out: {name} ({reason})." for name, reason in data.get("left_out", {}).items()]
    header = ["workload", "method", "median", "tokens/s", "against", "ratio", "quartiles", "at most", "kept"]
    for (shape, batch, tokens), group in _grouped(rows, "shape", "batch", "tokens"):
        parts += [f"### {shape}, {batch} × {tokens:,} tokens", markdown_table(header, map(_cells, group), left=2)]
    return [*parts, *left_out, *_errors(data)]


def _cells(row: Row) -> list[Any]:
    at_most, ratio = row["at_most"], row["ratio"]
    compared = row["value"] if ratio is None else ratio
    return [
        row["workload"],
        row["method"],
        f"{row['value']:,.2f} {row['unit']}",
        None if row["tokens_per_second"] is None else round(row["tokens_per_second"]),
        row["against"],
        None if ratio is None else f"{ratio:.3f}",
        None if row["low"] is None else f"{row['low']:.3f} – {row['high']:.3f}",
        None if at_most is None else f"{at_most:,g}{' ms' if ratio is None else ''}",
        None if at_most is None else "yes" if compared <= at_most else "no",
    ]


def _memory(data: Data) -> list[str]:
    rows = [row for item in data["items"].values() for row in item.get("rows", [])]
    header = ["model", "batch", "checkpointing", "planned", "measured", "ratio", "of the step", "measured", "ratio"]
    cells = [
        [
            row["shape"],
            f"{row['batch']} × {row['tokens']:,}",
            "yes" if row["checkpointing"] else "no",
            *(show(row["planned"]), show(row["measured"]), f"{row['ratio']:.3f}"),
            *(show(row["step_planned"]), show(row["step_measured"]), f"{row['step_ratio']:.3f}"),
        ]
        for row in rows
    ]
    said = "The peak of all tensors in a training step, as `headedit plan` tells it and as it is measured."
    return ["## Memory plan", said, markdown_table(header, cells, left=3), *_errors(data)]


def _compare(data: Data) -> list[str]:
    done = [item for item in data["items"].values() if item.get("rows")]
    parts = [
        "## Comparison",
        f"{len(done)} cells are finished; scores with their 95 % intervals, and each against LoRA.",
    ]
    for title, header, cells in data.get("tables", []):
        parts += [f"### {title}", markdown_table(header, cells)]
    return [*parts, *_errors(data)]


def _errors(data: Data) -> list[str]:
    errors = [[name, _last_line(item["error"])] for name, item in data["items"].items() if "error" in item]
    return [markdown_table(["failed", "error"], errors, left=2)] if errors else []


def _last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1].strip()[:200] if lines else ""


def _grouped(rows: Iterable[Row], *keys: str) -> Iterable[tuple[tuple[Any, ...], list[Row]]]:
    def key(row: Row) -> tuple[Any, ...]:
        return tuple(row[name] for name in keys)

    return [(of, list(group)) for of, group in groupby(sorted(rows, key=key), key)]
