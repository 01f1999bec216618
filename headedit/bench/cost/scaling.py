"""How cost scales with layers, heads and sequence length, and the size of edits on disk."""

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from headedit.bench.cost.methods import OPEN_SHARE, bare, edited, share, upper_bound
from headedit.bench.cost.operators import count_operators
from headedit.bench.cost.shapes import Shape, build, check_names, random_ids
from headedit.bench.cost.timing import alternate, as_is
from headedit.bench.cost.workloads import forward, loss_and_gradients, training_step
from headedit.bench.results import Row
from headedit.edits import EditConfig, HeadEdits, attach
from headedit.edits.gate_set import GateIndex, freeze_gates

SWEEPS: dict[str, tuple[Shape, Sequence[int]]] = {
    "layers": (Shape(hidden=256, heads=8, batch=2, tokens=64), (4, 8, 16, 32, 48, 80)),
    "heads": (Shape(layers=4, hidden=1024, batch=2, tokens=64), (8, 16, 32, 64, 128)),
    "tokens": (Shape(layers=4, hidden=256, heads=8, batch=2), (32, 64, 128, 256, 512)),
}
"""By what is varied: the shape of everything else, and its values."""


def scaling_cost(
    sweeps: Sequence[str] | None = None,
    *,
    repeats: int = 20,
    dtype: str = "float32",
    device: str = "cpu",
    progress: bool = True,
) -> list[Row]:
    """Measures cost along each sweep.

    Args:
        sweeps: names from ``SWEEPS``; by default all.
        repeats: timed runs of each.
        dtype, device: of the models.
        progress: show bars.

    Returns:
        A row per shape: ``sweep`` and its ``value``; ``step_ms`` and ``step_ratio`` against the upper bound,
        ``forward_ms`` and ``forward_ratio`` against the bare model; ``step_operators`` and ``forward_operators``, the
        number of operators added; ``attach_ms``; ``parameters``; ``bytes`` on disk, and ``hardened_bytes`` with a
        twentieth of the heads open.

    Raises:
        HeadEditError: a name is not known.
    """
    check_names(sweeps, SWEEPS, "sweeps")
    rows: list[Row] = []
    for sweep in SWEEPS if sweeps is None else sweeps:
        shape, values = SWEEPS[sweep]
        for value in values:
            size: dict[str, Any] = {sweep: value}
            chosen = replace(shape, **size, dtype=dtype, device=device)
            rows.append({"sweep": sweep, "value": value} | _of_shape(chosen, repeats, progress, f"{value} {sweep}"))
    return rows


def _of_shape(shape: Shape, repeats: int, progress: bool, what: str) -> Row:
    base = build(shape)
    ids = random_ids(shape.vocab, shape.batch, shape.tokens, shape.device)
    row: Row = {}
    for name, reference, make in (("step", upper_bound, training_step), ("forward", bare, forward)):
        runs = {"reference": make(reference(base), ids), "edited": make(edited(base), ids)}
        variants = {of: as_is(run) for of, run in runs.items()}
        timing = alternate(variants, repeats, ids.device, what=f"{what}, {name}", progress=progress)["edited"]
        row |= {f"{name}_ms": timing.median, f"{name}_ratio": timing.ratio}
    for name, reference, count in (("step", upper_bound, loss_and_gradients), ("forward", bare, forward)):
        fewer, more = (count(method(base), ids) for method in (reference, edited))
        fewer(), more()
        row[f"{name}_operators"] = (count_operators(more) - count_operators(fewer)).kernels.total()
    attaching = {"attach": lambda: partial(attach, share(base))}
    row["attach_ms"] = alternate(attaching, min(repeats, 5), ids.device)["attach"].median
    return row | on_disk(base)


def on_disk(model: nn.Module) -> Row:
    """Number of parameters of edits of every head of a model, and bytes of their files, whole and hardened.

    The model may be on the meta device.
    """
    edits = attach(share(model), config=EditConfig(init_std=1e-3))
    parameters = edits.get_nb_trainable_parameters()[0]
    with tempfile.TemporaryDirectory() as folder:
        edits.save_pretrained(Path(folder, "whole"))
        _open_a_few(edits)
        edits.save_pretrained(Path(folder, "hardened"), hardened=True)
        whole, hardened = (
            sum(file.stat().st_size for file in Path(folder, name).glob("*.safetensors"))
            for name in ("whole", "hardened")
        )
    return {"parameters": parameters, "bytes": whole, "hardened_bytes": hardened}


def _open_a_few(edits: HeadEdits) -> None:
    heads = [(i, head) for i, site in enumerate(edits.sites) for head in range(site.heads)]
    opened = heads[:: round(1 / OPEN_SHARE)]
    freeze_gates(edits.module, [GateIndex(i, vector, head) for i, head in opened for vector in ("offset", "scale")])
    edits.harden()
