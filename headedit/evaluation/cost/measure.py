"""Cost in one run: times, memory and operators of all contenders, as rows of one table."""

import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from headedit.edits import attach
from headedit.edits.storage import load
from headedit.errors import HeadEditError
from headedit.evaluation.cost import work
from headedit.evaluation.cost.contenders import CONTENDERS, INFERRED, TRAINED, Prepared, put_lora, share
from headedit.evaluation.cost.memory import peak_of_process, peak_of_tensors
from headedit.evaluation.cost.operators import count_operators
from headedit.evaluation.cost.shapes import Shape, build, check_names, random_ids
from headedit.evaluation.cost.timing import alternate, as_is
from headedit.specs import find_sites, find_spec

Row = dict[str, Any]

WORKS = ("step", "forward", "prefill", "decode", "attach", "memory", "operators")
"""What can be measured."""

_MIB = 2**20


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What was measured.

    Fields:
        rows: one a piece of work and contender: ``work``, ``contender``, ``value`` and ``unit``; ``against``, the
            contender it is compared with, ``ratio``, ``low`` and ``high``, the quartiles of the ratio within a round;
            ``limit``, what the ratio may be at most (of ``attach`` the value); ``tokens_per_second``; for operators
            ``over_the_batch``, how many go over all of a site's input. None where it does not apply.
        left_out: contenders that this model or installation cannot have, with the reason.
        shape: the model and batch.
        given: whether a model was given, so that the shape says the batch alone.
        repeats: timed runs of each.
        machine: device, threads, load average of the last minute before and after, version of torch.
    """

    rows: list[Row]
    left_out: dict[str, str]
    shape: Shape
    given: bool
    repeats: int
    machine: dict[str, Any]

    def row(self, piece: str, contender: str) -> Row:
        """The row of a piece of work and a contender."""
        return next(row for row in self.rows if (row["work"], row["contender"]) == (piece, contender))

    def to_dict(self) -> dict[str, Any]:
        """All as plain data."""
        return asdict(self)


def limits(device: torch.device) -> dict[tuple[str, str], float]:
    """What the ratios may be at most, by work and contender; for ``attach`` milliseconds."""
    return {
        ("step", "edited"): 1.05 if device.type == "cuda" else 1.03,
        ("forward", "edited"): 1.02,
        ("forward", "hardened"): 1.01,
        ("forward", "merged"): 1.00,
        ("memory", "edited"): 1.02,
        ("attach", "edited"): 1000.0,
    }


def measure_cost(
    shape: Shape | None = None,
    *,
    model: nn.Module | None = None,
    contenders: Sequence[str] | None = None,
    works: Sequence[str] | None = None,
    repeats: int = 30,
    progress: bool = True,
) -> Cost:
    """Measures contenders that share one model's weights; runs alternate in one process.

    Args:
        shape: of the model, a Llama with random weights, and of the batch; by default 8 layers of width 512, batch
            4 × 128.
        model: measure this one instead; it is frozen, and ``shape`` gives the batch alone.
        contenders: names from ``CONTENDERS``; by default all that the model and the installation can have.
        works: names from ``WORKS``; by default all.
        repeats: timed runs of each, after three that are not counted.
        progress: show bars.

    Raises:
        HeadEditError: a name is not known, or a contender that was named cannot be had.
    """
    shape = Shape() if shape is None else shape
    check_names(contenders, CONTENDERS, "contenders")
    check_names(works, WORKS, "works")
    load_before = _load()
    base = build(shape) if model is None else model.requires_grad_(False).eval()
    device = next(base.parameters()).device
    ready, left_out = _prepared(base, contenders)
    config: Any = base.config
    ids = random_ids(config.get_text_config().vocab_size, shape.batch, shape.tokens, device)
    measure: dict[str, Callable[[], Iterator[Row]]] = {
        "step": partial(_times, "step", ready, TRAINED, work.training_step, ids, repeats, progress),
        "forward": partial(_times, "forward", ready, INFERRED, work.forward, ids, repeats, progress),
        "prefill": partial(_times, "prefill", ready, INFERRED, work.prefill, ids, repeats, progress),
        "decode": partial(_times, "decode", ready, INFERRED, work.decode, ids, repeats, progress),
        "attach": partial(_attach, base, "lora" in ready, min(repeats, 10), progress),
        "memory": partial(_memory, ready, ids),
        "operators": partial(_operators, base, ready, ids),
    }
    allowed = limits(device)
    rows = [
        dict.fromkeys(("against", "ratio", "low", "high", "tokens_per_second", "over_the_batch"))
        | row
        | {"limit": allowed.get((row["work"], row["contender"]))}
        for name in (WORKS if works is None else works)
        for row in measure[name]()
    ]
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    machine = {"device": name, "threads": torch.get_num_threads(), "load_before": load_before, "load_after": _load()}
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
    for name in CONTENDERS if named is None else dict.fromkeys(["bare", "limit", *named]):
        try:
            ready[name] = CONTENDERS[name](base)
        except HeadEditError as error:
            if named is not None:
                raise
            left_out[name] = str(error)
    return ready, left_out


def _times(
    piece: str,
    ready: dict[str, Prepared],
    names: Sequence[str],
    make: Callable[[Prepared, Tensor], work.Run],
    ids: Tensor,
    repeats: int,
    progress: bool,
) -> Iterator[Row]:
    there = {name: ready[name] for name in names if name in ready}
    variants: dict[str, Callable[[], work.Run]]
    if piece == "decode":  # each run goes on from a cache of its own
        variants = {name: partial(make, prepared, ids) for name, prepared in there.items()}
        tokens = ids.shape[0] * work.DECODED
    else:
        variants = {name: as_is(make(prepared, ids)) for name, prepared in there.items()}
        tokens = ids.numel()
    timings = alternate(variants, repeats, ids.device, what=piece, progress=progress)
    for name, timing in timings.items():
        low, high = timing.quartiles
        yield {
            "work": piece,
            "contender": name,
            "value": timing.median,
            "unit": "ms",
            "against": names[0],
            "ratio": timing.ratio,
            "low": low,
            "high": high,
            "tokens_per_second": 1000 * tokens / timing.median,
        }


def _attach(base: nn.Module, with_lora: bool, repeats: int, progress: bool) -> Iterator[Row]:
    device = next(base.parameters()).device
    with tempfile.TemporaryDirectory() as folder:
        attach(share(base)).save_pretrained(folder)
        attaching: dict[str, Callable[[], work.Run]] = {"edited": lambda: partial(attach, share(base))}
        if with_lora:
            attaching["lora"] = lambda: partial(put_lora, share(base))
        loading: dict[str, Callable[[], work.Run]] = {"edited": lambda: partial(load, share(base), folder)}
        for piece, variants in (("attach", attaching), ("load", loading)):
            for name, timing in alternate(variants, repeats, device, what=piece, progress=progress).items():
                yield {"work": piece, "contender": name, "value": timing.median, "unit": "ms"}


def _memory(ready: dict[str, Prepared], ids: Tensor) -> Iterator[Row]:
    """Peaks of a training step."""
    peaks: dict[str, dict[str, int | None]] = {"memory": {}, "resident set": {}}
    for name in TRAINED:
        if name in ready:
            step = work.training_step(ready[name], ids)
            step()
            peaks["memory"][name] = peak_of_tensors(step, ids.device)
            if ids.device.type == "cpu":
                peaks["resident set"][name] = peak_of_process(step)
    for piece, of in peaks.items():
        for name, peak in of.items():
            if peak is not None:
                ratio = peak / (of[TRAINED[0]] or peak)
                row = {"work": piece, "contender": name, "value": peak / _MIB, "unit": "MiB"}
                yield row | {"against": TRAINED[0], "ratio": ratio}


def _operators(base: nn.Module, ready: dict[str, Prepared], ids: Tensor) -> Iterator[Row]:
    """Operators that a contender has more than its reference, by number of sites."""
    site = find_sites(base, find_spec(base))[0]
    sites = len(find_sites(base, find_spec(base)))
    large = ids.numel() * site.width
    for piece, names, make in (
        ("operators, eval", INFERRED, work.forward),
        ("operators, train", TRAINED, work.loss_and_gradients),
    ):
        counts = {}
        for name in names:
            if name in ready:
                run = make(ready[name], ids)
                run()
                counts[name] = count_operators(run, large=large)
        for name in list(counts)[1:]:
            more = counts[name] - counts[names[0]]
            row = {"work": piece, "contender": name, "value": more.kernels.total() / sites, "unit": "a site"}
            yield row | {"against": names[0], "over_the_batch": more.large / sites}


def _load() -> float | None:
    return round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None
