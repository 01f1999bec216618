"""Whether stability selection keeps its word: nominal against true rates of false heads, on planted problems."""

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from headedit.bench.parallel import run_units
from headedit.bench.recovery.planted import plant
from headedit.bench.recovery.planted_model import SHAPES, check_shape
from headedit.bench.results import BenchResult, Row, counted, mean, table_of
from headedit.edits import attach
from headedit.edits.gate_set import GateIndex, all_gates
from headedit.io.files import write_atomically
from headedit.runs.selection import Competitor, largest_q, select
from headedit.training.recipes.session import Session
from headedit.training.recipes.stability_selection import ranked_halves

RATES = (0.05, 0.1, 0.15, 0.2, 0.3)
"""Nominal rates of false gates among the chosen ones."""

PROBLEM = {"examples": 128, "tokens": 16}
"""Smaller than those of the other benches, since many are needed."""


def bench_calibration(
    shapes: Sequence[str] = SHAPES,
    seeds: Sequence[int] = range(10),
    *,
    halves: int = 10,
    folder: Path | None = None,
    jobs: int = 1,
    progress: bool = True,
    **problem: Any,
) -> BenchResult:
    """Selects heads on planted problems at several nominal rates, and counts the false ones.

    Args:
        shapes: of the models.
        seeds: one problem each.
        halves: number of halves of the examples that are ranked.
        folder: the rankings of each finished problem are kept there, and read where they are; None to keep none.
        jobs: number of processes.
        progress: show a bar.
        problem: arguments of ``plant``, in place of those of ``PROBLEM``.

    Returns:
        A row per problem and rate: chosen and false gates and heads, their share, power (the share of the planted gates
        that was chosen), and what was said of it: the bound, and the rate that the decoys show. In the summary a row
        per rate: the mean share of false gates over all problems, 0 where nothing was chosen, and its standard error.

    Raises:
        HeadEditError: there is no such shape, or a number is impossible.
    """
    for shape in shapes:
        check_shape(shape)
    chosen = {**PROBLEM, **problem}
    units: list[dict[str, Any]] = [
        {"shape": shape, "seed": seed, "halves": halves, "problem": chosen, "folder": folder}
        for seed in seeds
        for shape in shapes
    ]
    names = [f"{unit['shape']} {unit['seed']}" for unit in units]
    found = run_units(calibration_unit, units, names=names, jobs=jobs, progress=progress)
    rows = [_row(one, rate) for one in found for rate in RATES]
    summary = [_summary(rate, [row for row in rows if row["rate"] == rate]) for rate in RATES]
    columns = list(summary[0])
    return BenchResult(
        title="Planted heads: nominal against true false selections",
        settings={
            "shapes": list(shapes),
            "seeds": list(seeds),
            "halves": halves,
            "rates": list(RATES),
            "problem": chosen,
        },
        rows=rows,
        summary=summary,
        tables=[(f"{counted(found, 'problem')}, {halves} halves each", *table_of(columns, summary))],
    )


def calibration_unit(shape: str, seed: int, halves: int, problem: Mapping[str, Any], folder: Path | None) -> Row:
    """Ranks the gates of one planted problem on halves of its examples.

    Returns:
        Shape, seed, the planted gates, the number of competitors, and for every half the first of them, as (site,
        vector, head, whether it is a decoy).
    """
    file = None if folder is None else folder / "calibration" / f"{shape}-{seed}.json"
    asked = {"shape": shape, "seed": seed, "halves": halves, "problem": dict(problem)}
    if file is not None and file.is_file():
        kept: Row = json.loads(file.read_text(encoding="utf-8"))
        if {key: kept.get(key) for key in asked} == asked:
            return kept
    planted = plant(shape, seed, **problem)
    edits = attach(planted.model)
    try:
        with tempfile.TemporaryDirectory() as place:
            session = Session(edits, planted.train, None, Path(place), seed, 0, False)
            orders = ranked_halves(session, halves)
        competitors = 2 * len(all_gates(edits.module))
        first = largest_q(competitors, max(RATES))
    finally:
        edits.detach()
    row: Row = {
        **asked,
        "planted": [list(gate) for gate in sorted(planted.values)],
        "competitors": competitors,
        "orders": [[[*one.gate, one.decoy] for one in order[:first]] for order in orders],
    }
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, (json.dumps(row) + "\n").encode())
    return row


def _row(problem: Row, rate: float) -> Row:
    orders = [[Competitor(GateIndex(*one[:3]), one[3]) for one in order] for order in problem["orders"]]
    found = select(orders, problem["competitors"], rate)
    planted = {GateIndex(*gate) for gate in problem["planted"]}
    heads = {(gate.site, gate.head) for gate in planted}
    chosen = found.chosen
    false = [gate for gate in chosen if gate not in planted]
    chosen_heads = {(gate.site, gate.head) for gate in chosen}
    return {
        "shape": problem["shape"],
        "seed": problem["seed"],
        "rate": rate,
        "q": found.q,
        "threshold": found.threshold,
        "chosen": len(chosen),
        "false": len(false),
        "false_rate": len(false) / max(1, len(chosen)),
        "false_heads": len(chosen_heads - heads),
        "false_head_rate": len(chosen_heads - heads) / max(1, len(chosen_heads)),
        "power": (len(chosen) - len(false)) / max(1, len(planted)),
        "bound": found.worst_case,
        "decoy_rate": found.decoy_rate,
    }


def _summary(rate: float, rows: Sequence[Row]) -> Row:
    shares = [row["false_rate"] for row in rows]
    centre = sum(shares) / len(shares)
    spread = (sum((share - centre) ** 2 for share in shares) / max(1, len(shares) - 1)) ** 0.5
    return {
        "rate": rate,
        "false_rate": centre,
        "false_rate_error": spread / len(shares) ** 0.5,
        "false_head_rate": mean(row["false_head_rate"] for row in rows),
        "power": mean(row["power"] for row in rows),
        "chosen": mean(row["chosen"] for row in rows),
        "false": mean(row["false"] for row in rows),
        "bound": mean(row["bound"] for row in rows),
        "decoy_rate": mean(row["decoy_rate"] for row in rows),
    }
