"""A training step on a model without weights: what it keeps for the backward pass, and the most it holds."""

import itertools
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from headedit.errors import HeadEditError
from headedit.training.memory_plan.kernels import KernelsOf
from headedit.training.memory_plan.live_bytes import LiveBytes
from headedit.training.memory_plan.setup import Setup
from headedit.training.memory_plan.skeleton import Skeleton


@dataclass(frozen=True, kw_only=True)
class Step:
    """Bytes that a training step takes beside weights, edits, their gradients and the optimiser.

    Fields:
        most: at most.
        kept: by what is kept for the backward pass, when the forward pass is over.
        layers: of ``kept``, by each layer.
        inside: the most that is held beside ``layers`` while the gradient goes through the layers.
    """

    most: int
    kept: int
    layers: tuple[int, ...]
    inside: int

    @property
    def head(self) -> int:
        """The part of ``kept`` that no layer keeps: of embeddings, the head and the loss."""
        return max(0, self.kept - sum(self.layers))

    def extended(self, longer: "Step", times: int, at: int) -> "Step":
        """The step with layers more: ``times`` what ``longer`` has more than this one, put in at layer ``at``."""
        period = len(longer.layers) - len(self.layers)
        more = self.layers[at : at + period] * times
        return Step(
            most=self.most + times * (longer.most - self.most),
            kept=self.kept + times * (longer.kept - self.kept),
            layers=(*self.layers[:at], *more, *self.layers[at:]),
            inside=self.inside,
        )


def trace_step(skeleton: Skeleton, setup: Setup) -> Step:
    """Runs a step as the trainer does, forward and backward, on tensors without values.

    Raises:
        HeadEditError: the model reads values of tensors, so that it cannot run without them.
    """
    model: Any = skeleton.model
    trained = skeleton.trained()
    for parameter in trained:
        parameter.grad = torch.zeros_like(parameter)  # with accumulation it is there in the forward pass
    batch = _batch(setup)
    held = [*skeleton.base(), *trained, *(p.grad for p in trained if p.grad is not None), *batch.values()]
    live = LiveBytes(held, answer="attention_mask" not in batch)
    after: list[int] = []
    hooks = [layer.register_forward_hook(_noting(live, after)) for layer in skeleton.layers]
    hooks += [layer.register_forward_hook(_restarting(live)) for layer in skeleton.layers[-1:]]
    try:
        with _checkpointing(model, setup), live:
            with KernelsOf(setup.device):
                loss: Tensor = model(**batch, use_cache=False).loss
            kept, noted = live.now, list(after)
            # not within the other mode, which a layer that is run anew could not see
            loss.backward()  # type: ignore[no-untyped-call]
    except (RuntimeError, NotImplementedError) as error:
        raise HeadEditError(
            f"A {type(model).__name__} cannot be run without weights, so what a step takes cannot be told "
            f"({str(error).splitlines()[0]}). Measure it with one step on the device."
        ) from error
    finally:
        for hook in hooks:
            hook.remove()
    layers = tuple(now - earlier for earlier, now in itertools.pairwise([0, *noted]))
    return Step(most=live.most, kept=kept, layers=layers, inside=max(0, live.since - sum(layers)))


def _batch(setup: Setup) -> dict[str, Tensor]:
    ids = torch.empty(setup.batch_size, setup.tokens, dtype=torch.long, device="meta")
    batch = {"input_ids": ids, "labels": torch.empty_like(ids)}
    if setup.padded and setup.attention != "flash":
        batch["attention_mask"] = torch.empty_like(ids)
    return batch


@contextmanager
def _checkpointing(model: Any, setup: Setup) -> Iterator[None]:
    if not setup.checkpointing:
        yield
        return
    if not getattr(model, "supports_gradient_checkpointing", False):
        raise HeadEditError(f"{type(model).__name__} has no gradient checkpointing.")
    kind = "activation" if hasattr(model, "activation_checkpointing_enable") else "gradient"  # its former name
    enable, disable = (getattr(model, f"{kind}_checkpointing_{what}") for what in ("enable", "disable"))
    options = {"use_reentrant": False, "preserve_rng_state": False}  # there are no random numbers to have again
    enable({**options, "context_fn": lambda: (nullcontext(), KernelsOf(setup.device))})
    try:
        yield
    finally:
        disable()


def _noting(live: LiveBytes, after: list[int]) -> Any:
    def hook(module: nn.Module, args: object, output: object) -> None:
        after.append(live.now)

    return hook


def _restarting(live: LiveBytes) -> Any:
    def hook(module: nn.Module, args: object, output: Tensor | tuple[Tensor, ...]) -> None:
        hidden = output if isinstance(output, Tensor) else output[0]
        if hidden.requires_grad:
            hidden.register_hook(lambda gradient: live.restart())  # type: ignore[no-untyped-call]

    return hook
