"""A training step and a validation pass on a model without weights: the bytes of what they make, at the peak."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from einops import repeat
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from headedit.errors import HeadEditError
from headedit.hf.modes import evaluating
from headedit.training.memory_plan.kernels import KernelsOf
from headedit.training.memory_plan.live_bytes import LiveBytes
from headedit.training.memory_plan.loss import planned_loss
from headedit.training.memory_plan.setup import Setup
from headedit.training.memory_plan.skeleton import Skeleton
from headedit.training.memory_plan.value_answers import ValueAnswers


@dataclass(frozen=True, kw_only=True)
class Step:
    """Bytes that a training step takes, without weights, edits, their gradients and the optimiser.

    Fields:
        peak: bytes at the peak of the step.
        saved: bytes saved for the backward pass, when the forward pass is over.
        layers: the part of ``saved`` of each layer.
        inside: the peak in addition to ``layers`` while the gradient goes through the layers.
        validation: bytes at the peak of a pass in validation, which saves nothing.
        logits: bytes of the logits that are made at once in a step, without their gradient.
    """

    peak: int
    saved: int
    layers: tuple[int, ...]
    inside: int
    validation: int
    logits: int

    @property
    def head(self) -> int:
        """The part of ``saved`` that no layer saves: of embeddings, the head and the loss."""
        return max(0, self.saved - sum(self.layers))

    def extended(self, longer: "Step", times: int, at: int) -> "Step":
        """The step with more layers: ``times`` times those that ``longer`` has in addition, from layer ``at`` on."""
        period = len(longer.layers) - len(self.layers)
        more = self.layers[at : at + period] * times
        return Step(
            peak=self.peak + times * (longer.peak - self.peak),
            saved=self.saved + times * (longer.saved - self.saved),
            layers=(*self.layers[:at], *more, *self.layers[at:]),
            inside=self.inside,
            validation=self.validation + times * (longer.validation - self.validation),
            logits=self.logits,
        )


def trace_step(skeleton: Skeleton, setup: Setup) -> Step:
    """Runs a step and a validation pass as the trainer does, on tensors without values.

    All tokens are taken to have labels, so it is the most that these take with other labels.

    Raises:
        HeadEditError: the model cannot run without the values of tensors, or on sequences of this length.
    """
    model: Any = skeleton.model
    trained = skeleton.trained()
    for parameter in trained:
        parameter.grad = torch.zeros_like(parameter)  # with accumulation it exists in the forward pass
    held = [*skeleton.base(), *trained, *(p.grad for p in trained if p.grad is not None)]
    saved_by = [0] * len(skeleton.layers)
    logits: list[int] = []
    try:
        batch = _batch(model, setup, setup.batch_size)
        live = _live(held, batch)
        with ExitStack() as hooks, _with_checkpointing(model, setup), live:
            for hook in (*_hooks(skeleton.layers, live, saved_by), *_hook_on_head(model, logits)):
                hooks.callback(hook.remove)
            with KernelsOf(setup.device):
                loss = planned_loss(model, batch, whole_logits=setup.whole_logits)
            saved, layers = live.now, tuple(saved_by)
            # not within the other mode, which a layer that is run again could not see
            loss.backward()  # type: ignore[no-untyped-call]
        batch = _batch(model, setup, setup.in_validation)
        validating = _live(held, batch)
        with torch.no_grad(), evaluating(model), validating, KernelsOf(setup.device):
            planned_loss(model, batch, whole_logits=setup.whole_logits)
    except (RuntimeError, NotImplementedError, ValueError) as error:
        raise HeadEditError(
            f"A {type(model).__name__} cannot be run on {setup.tokens} tokens without weights, so the memory of a step "
            f"is unknown ({str(error).splitlines()[0]}). Measure it with one step on the device."
        ) from error
    return Step(
        peak=live.peak,
        saved=saved,
        layers=layers,
        inside=max(0, live.recent_peak - sum(layers)),
        validation=validating.peak,
        logits=max(logits, default=0),
    )


def _live(held: list[Tensor], batch: dict[str, Tensor]) -> LiveBytes:
    return LiveBytes([*held, *batch.values()], answers=ValueAnswers(scalar="attention_mask" not in batch))


def _batch(model: Any, setup: Setup, rows: int) -> dict[str, Tensor]:
    ids = torch.empty(rows, setup.tokens, dtype=torch.long, device="meta")
    batch = {"input_ids": ids, "labels": torch.empty_like(ids)}
    if rows > 1 and setup.attention != "flash":  # padding, and so a mask
        batch["attention_mask"] = torch.empty_like(ids)
    codebooks = getattr(model, "num_codebooks", 1)  # of audio, whose codes are rows of the batch: MusicGen
    if codebooks > 1:
        batch["input_ids"] = repeat(ids, "rows tokens -> (rows codebooks) tokens", codebooks=codebooks)
        batch["labels"] = repeat(ids, "rows tokens -> rows tokens codebooks", codebooks=codebooks)
    return batch


def _hook_on_head(model: Any, logits: list[int]) -> Iterator[RemovableHandle]:
    """A hook that notes the bytes of the logits that a model's head makes."""
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    if head is not None:
        yield head.register_forward_hook(lambda module, args, made: logits.append(made.numel() * made.element_size()))


@contextmanager
def _with_checkpointing(model: Any, setup: Setup) -> Iterator[None]:
    if not setup.checkpointing:
        yield
        return
    if not getattr(model, "supports_gradient_checkpointing", False):
        raise HeadEditError(f"{type(model).__name__} has no gradient checkpointing.")
    kind = "activation" if hasattr(model, "activation_checkpointing_enable") else "gradient"  # its former name
    enable, disable = (getattr(model, f"{kind}_checkpointing_{what}") for what in ("enable", "disable"))
    options = {"use_reentrant": False, "preserve_rng_state": False}  # without values, no random numbers to repeat
    enable({**options, "context_fn": lambda: (nullcontext(), KernelsOf(setup.device))})
    try:
        yield
    finally:
        disable()


def _hooks(layers: list[nn.Module], live: LiveBytes, saved_by: list[int]) -> Iterator[RemovableHandle]:
    """Hooks that note what each layer saves, and restart the recent peak when a gradient enters the last one."""
    before = 0

    def note(layer: int, *call: object) -> None:
        nonlocal before
        saved_by[layer] += live.now - before
        before = live.now

    def restart(module: nn.Module, args: object, output: Tensor | tuple[Tensor, ...]) -> None:
        hidden = output if isinstance(output, Tensor) else output[0]
        if hidden.requires_grad:
            hidden.register_hook(lambda gradient: live.restart())  # type: ignore[no-untyped-call]

    for layer, module in enumerate(layers):
        yield module.register_forward_hook(partial(note, layer))
    for module in layers[-1:]:
        yield module.register_forward_hook(restart)
