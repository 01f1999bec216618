"""Gradient checkpointing of a model: whether it is on, and gradients in eval mode that keep it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from headedit.hf.modes import evaluating


def is_checkpointing(model: nn.Module) -> bool:
    """Whether layers of a model are run again in the backward pass of training."""
    return any(getattr(module, "gradient_checkpointing", False) for module in model.modules())


def enable_checkpointing(model: Any) -> None:
    """Switches gradient checkpointing on, in the way that hooks inside of layers work with."""
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})


@contextmanager
def evaluating_with_gradients(model: nn.Module) -> Iterator[None]:
    """Eval mode for passes with a backward pass: gradient checkpointing stays on, which models have in training only.

    The modules that are checkpointed stay in training mode, without dropout of their own; what is inside them does not.
    """
    kept = [module for module in model.modules() if getattr(module, "gradient_checkpointing", False)]
    dropouts = [
        (module, name, value)
        for module in kept
        for name, value in vars(module).items()
        if isinstance(value, float) and "drop" in name
    ]
    with evaluating(model):
        for module in kept:
            module.training = True
        for module, name, _ in dropouts:
            setattr(module, name, 0.0)
        try:
            yield
        finally:
            for module, name, value in dropouts:
                setattr(module, name, value)
