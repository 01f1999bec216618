"""The part ``memory``: what ``headedit plan`` says of a training step, next to the peak that is measured."""

import gc
from functools import partial
from itertools import chain, product
from typing import Any

import torch
from torch import Tensor

from headedit.bench.cost.memory import peak_of_tensors
from headedit.bench.cost.methods import share
from headedit.bench.cost.shapes import Shape, build, random_ids
from headedit.bench.gpu.record import Data, Recorder
from headedit.bench.gpu.sizes import Size, sizes_of
from headedit.bench.results import Row
from headedit.data.losses import WithoutLogits, is_large
from headedit.edits import attach
from headedit.hf.output_head import output_head
from headedit.training.loop.token_loss import token_loss
from headedit.training.memory_plan import Planner, Setup

AT_MOST = 0.1
"""How far the plan may be from the measured peak, as a share of it."""


def measure(recorder: Recorder, settings: Data) -> None:
    """Measures a training step of each model and batch, without gradient checkpointing and with it.

    Args:
        recorder: takes a row per item: ``planned`` and ``measured``, bytes of all tensors at the peak; ``ratio``, of
            the first to the second; ``step_planned`` and ``step_measured``, the same beyond what is held between steps.
        settings: ``device`` and ``shapes``, names of sizes.
    """
    for size in sizes_of(settings["shapes"], settings["device"]):
        _of_size(recorder, size)
        gc.collect()
        if torch.device(settings["device"]).type == "cuda":
            torch.cuda.empty_cache()


def _of_size(recorder: Recorder, size: Size) -> None:
    model: Any = build(size.shape)
    planner = Planner(model.config)
    for (batch, tokens), checkpointing in product(size.batches, (False, True)):
        shape = size.with_batch(batch, tokens)
        row = {"shape": size.name, "batch": batch, "tokens": tokens, "checkpointing": checkpointing}
        step = partial(_of_step, model, planner, shape, row)
        with_or_without = "with" if checkpointing else "without"
        recorder.measure(f"{size.name}, {batch} x {tokens}, {with_or_without} checkpointing", step)


def _of_step(base: Any, planner: Planner, shape: Shape, row: Row) -> list[Row]:
    device, checkpointing = torch.device(shape.device), row["checkpointing"]
    kind: Any = device.type
    dtype: Any = shape.dtype
    plan = planner.plan(
        Setup(batch_size=shape.batch, tokens=shape.tokens, dtype=dtype, checkpointing=checkpointing, device=kind)
    )
    model: Any = share(base)
    edits = attach(model)
    model.train()
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    ids = random_ids(model.config.vocab_size, shape.batch, shape.tokens, device)
    head = output_head(model) if is_large(ids, model.config.vocab_size) else None
    called = model if head is None else WithoutLogits(model, head)
    optimizer = torch.optim.AdamW(edits.module.parameters(), lr=1e-4)

    def step() -> None:
        loss: Any = token_loss(called(input_ids=ids, use_cache=False), ids)
        loss.backward()
        optimizer.step()

    step()  # gradients and moments are held from here on
    step()
    peak = peak_of_tensors(step, device)
    moments = [value for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor)]
    held = _bytes(chain(base.parameters(), base.buffers(), edits.module.parameters(), moments))
    held += _bytes(p.grad for p in edits.module.parameters() if p.grad is not None)
    before = torch.cuda.memory_allocated(device) if kind == "cuda" else held
    held_planned = plan.weights + plan.buffers + plan.edits + plan.gradients + plan.optimizer
    step_planned = plan.saved + plan.working
    row |= {
        "planned": held_planned + step_planned,
        "measured": before + peak,
        "ratio": (held_planned + step_planned) / (before + peak),
        "held_planned": held_planned,
        "held_measured": before,
        "step_planned": step_planned,
        "step_measured": peak,
        "step_ratio": step_planned / peak,
    }
    if kind == "cuda":
        free, of = torch.cuda.mem_get_info(device)
        row |= {"process": of - free - torch.cuda.memory_reserved(device), "process_planned": plan.process}
    edits.detach()
    return [row]


def _bytes(tensors: Any) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
