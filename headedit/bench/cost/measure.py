"""Cost in one run: times, memory and operators of all methods, as rows of one table."""

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from headedit.bench.cost.memory import keeps_memory, peak_of_process, peak_of_tensors
from headedit.bench.cost.methods import Prepared, share
from headedit.bench.cost.operators import count_operators
from headedit.bench.cost.peers import ATTACHED, INFERRED, METHODS, TRAINED, UPPER_BOUND, load_lora, save_lora
from headedit.bench.cost.shapes import Shape, build, check_names, random_ids
from headedit.bench.cost.timing import alternate, as_is
from headedit.bench.cost.workloads import DECODED, Run, decode, forward, loss_and_gradients, prefill, training_step
from headedit.bench.results import Row
from headedit.edits import attach
from headedit.edits.attach import load
from headedit.errors import HeadEditError
from headedit.hf.config import text_config
from headedit.specs import find_sites, find_spec

WORKLOADS = ("step", "forward", "prefill", "decode", "attach", "memory", "operators")
"""What can be measured."""

_MIB = 2**20


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What was measured.

    Fields:
        rows: one per workload and method: ``workload``, ``method``, ``value`` and ``unit``; ``against``, the method it
            is compared with, ``ratio``, ``low`` and ``high``, the quartiles of the ratio within a round; ``at_most``,
            the largest ratio that is allowed (of ``attach`` the largest value); ``tokens_per_second``; ``runs`` timed;
            for operators ``over_the_batch``, how many go over all of a site's input. None where it does not apply.
        left_out: methods that are unavailable for this model or installation, with the reason.
        shape: the model and batch.
        given: whether a model was given, so that the shape describes only the batch.
        repeats: timed runs of rows that have an ``at_most``.
        machine: device, threads, attention, load average of the last minute before and after, whether freed memory was
            kept or returned to the operating system, version of torch.
    """

    rows: list[Row]
    left_out: dict[str, str]
    shape: Shape
    given: bool
    repeats: int
    machine: dict[str, Any]

    def row(self, workload: str, method: str) -> Row:
        """The row of a workload and a method."""
        return next(row for row in self.rows if (row["workload"], row["method"]) == (workload, method))

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain data."""
        return asdict(self)


def allowed(device: torch.device) -> dict[tuple[str, str], float]:
    """The largest ratios that are allowed, by workload and method; for ``attach`` milliseconds."""
    inference = {"edited": 1.02, "hardened": 1.01, "merged": 1.00}
    return {
        **{(workload, name): most for workload in ("forward", "prefill", "decode") for name, most in inference.items()},
        ("step", "edited"): 1.05 if device.type == "cuda" else 1.03,
        ("memory", "edited"): 1.02,
        ("attach", "edited"): 1000.0,
    }


def measure_cost(
    shape: Shape | None = None,
    *,
    model: nn.Module | None = None,
    methods: Sequence[str] | None = None,
    workloads: Sequence[str] | None = None,
    repeats: int = 30,
    progress: bool = True,
) -> Cost:
    """Measures methods that share one model's weights; runs alternate in one process.

    Methods with an allowed ratio run in every round, all others in every fifth. On a CPU with glibc a pass is timed
    with the memory that the pass before it freed: by default it would be returned to the operating system, and its page
    faults, which each pass would pay again, are most of the noise.

    Args:
        shape: of the model, a Llama with random weights, and of the batch; by default 8 layers of width 512, batch
            4 × 128.
        model: measure this one instead; it is frozen, and ``shape`` gives only the batch.
        methods: names from ``METHODS``, to which the bare model and the upper bound are added; by default all that are
            available.
        workloads: names from ``WORKLOADS``; by default all.
        repeats: timed runs of each method with an allowed ratio, after three that are not counted.
        progress: show bars.

    Raises:
        HeadEditError: a name is not known, or a method that was named is unavailable.
    """
    shape = Shape() if shape is None else shape
    check_names(methods, METHODS, "methods")
    check_names(workloads, WORKLOADS, "workloads")
    load_before = _load()
    base = build(shape) if model is None else model.requires_grad_(False).eval()
    device = next(base.parameters()).device
    ready, left_out = _prepared(base, methods)
    text = text_config(base)
    ids = random_ids(text.vocab_size, shape.batch, shape.tokens, device)
    times = partial(_times, ready, ids, repeats, progress)
    measure: dict[str, Callable[[], Iterator[Row]]] = {
        "step": lambda: times("step", TRAINED, lambda prepared: as_is(training_step(prepared, ids))),
        "forward": lambda: times("forward", INFERRED, lambda prepared: as_is(forward(prepared, ids))),
        "prefill": lambda: times("prefill", INFERRED, lambda prepared: as_is(prefill(prepared, ids))),
        "decode": lambda: times("decode", INFERRED, lambda prepared: decode(prepared, ids)),
        "attach": partial(_attach, base, ready, min(repeats, 10), progress),
        "memory": partial(_memory, ready, ids),
        "operators": partial(_operators, base, ready, ids),
    }
    at_most = allowed(device)
    rows = [
        dict.fromkeys(("against", "ratio", "low", "high", "tokens_per_second", "runs", "over_the_batch"))
        | row
        | {"at_most": at_most.get((row["workload"], row["method"]))}
        for name in (WORKLOADS if workloads is None else workloads)
        for row in measure[name]()
    ]
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    machine = {"device": name, "threads": torch.get_num_threads(), "load_before": load_before, "load_after": _load()}
    machine["attention"] = text._attn_implementation
    machine["freed_memory"] = "kept" if keeps_memory(device) else "returned"
    return Cost(
        rows=rows,
        left_out=left_out,
        shape=shape,
        given=model is not None,
        repeats=repeats,
        machine=machine | {"torch": torch.__version__},
    )


def _prepared(base: nn.Module, named: Sequence[str] | None) -> tuple[dict[str, Prepared], dict[str, str]]:
    ready, left_out = {}, {}
    for name in METHODS if named is None else dict.fromkeys(["bare", UPPER_BOUND, *named]):
        try:
            ready[name] = METHODS[name](base)
        except HeadEditError as error:
            if named is not None:
                raise
            left_out[name] = str(error)
    return ready, left_out


def _times(
    ready: Mapping[str, Prepared],
    ids: Tensor,
    repeats: int,
    progress: bool,
    workload: str,
    names: Sequence[str],
    make: Callable[[Prepared], Callable[[], Run]],
) -> Iterator[Row]:
    """Times, compared with the first of the names; methods with an allowed ratio run in every round."""
    variants = {name: make(ready[name]) for name in names if name in ready}
    tokens = ids.shape[0] * DECODED if workload == "decode" else ids.numel()
    exact = {name for of, name in allowed(ids.device) if of == workload} & variants.keys()
    every_nth = variants.keys() - exact - {names[0] if exact else None}
    timings = alternate(variants, repeats, ids.device, every_nth=every_nth, what=workload, progress=progress)
    for name, timing in timings.items():
        low, high = timing.quartiles
        yield {
            "workload": workload,
            "method": name,
            "value": timing.median,
            "unit": "ms",
            "against": names[0],
            "ratio": timing.ratio,
            "low": low,
            "high": high,
            "tokens_per_second": 1000 * tokens / timing.median,
            "runs": len(timing.milliseconds),
        }


def _attach(base: nn.Module, ready: Mapping[str, Prepared], repeats: int, progress: bool) -> Iterator[Row]:
    """Attaching and loading; preparing the model for it is not timed."""
    device = next(base.parameters()).device

    def on_fresh_model(put: Callable[..., object], *args: object) -> Callable[[], Run]:
        return lambda: partial(put, share(base), *args)

    with tempfile.TemporaryDirectory() as folder:
        ours, theirs = Path(folder, "ours"), Path(folder, "lora")
        attach(share(base)).save_pretrained(ours)
        attaching = {"edited": on_fresh_model(attach)}
        attaching |= {name: on_fresh_model(put) for name, put in ATTACHED.items() if name in ready}
        loading = {"edited": on_fresh_model(load, ours)}
        if "lora" in ready:
            save_lora(ready["lora"], theirs)
            loading["lora"] = on_fresh_model(load_lora, theirs)
        for workload, variants in (("attach", attaching), ("load", loading)):
            for name, timing in alternate(variants, repeats, device, what=workload, progress=progress).items():
                row = {"workload": workload, "method": name, "value": timing.median, "unit": "ms"}
                yield row | {"runs": len(timing.milliseconds)}


def _memory(ready: dict[str, Prepared], ids: Tensor) -> Iterator[Row]:
    """Peak memory of a training step."""
    peaks: dict[str, dict[str, int | None]] = {"memory": {}, "resident set": {}}
    for name in TRAINED:
        if name in ready:
            step = training_step(ready[name], ids)
            step()
            peaks["memory"][name] = peak_of_tensors(step, ids.device)
            if ids.device.type == "cpu":
                peaks["resident set"][name] = peak_of_process(step)
    for workload, of in peaks.items():
        for name, peak in of.items():
            if peak is not None:
                ratio = peak / (of[TRAINED[0]] or peak)
                row = {"workload": workload, "method": name, "value": peak / _MIB, "unit": "MiB"}
                yield row | {"against": TRAINED[0], "ratio": ratio}


def _operators(base: nn.Module, ready: dict[str, Prepared], ids: Tensor) -> Iterator[Row]:
    """Operators that a method has more than its reference, per site."""
    site = find_sites(base, find_spec(base))[0]
    sites = len(find_sites(base, find_spec(base)))
    large = ids.numel() * site.width
    for workload, names, make in (
        ("operators, eval", INFERRED, forward),
        ("operators, train", TRAINED, loss_and_gradients),
    ):
        counts = {}
        for name in names:
            if name in ready:
                run = make(ready[name], ids)
                run()
                counts[name] = count_operators(run, large=large)
        for name in list(counts)[1:]:
            more = counts[name] - counts[names[0]]
            row = {"workload": workload, "method": name, "value": more.kernels.total() / sites, "unit": "per site"}
            yield row | {"against": names[0], "over_the_batch": more.large / sites}


def _load() -> float | None:
    return round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None
