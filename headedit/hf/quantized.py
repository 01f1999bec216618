"""Contexts in which edits of a quantized base model can be trained."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from headedit.errors import HeadEditError


@contextmanager
def accepted_for_training(model: nn.Module) -> Iterator[None]:
    """Lets a quantized base pass the Trainer's check, which knows only PEFT's adapters as trainable parts."""
    name = "_hf_peft_config_loaded"
    if not getattr(model, "is_quantized", False):
        yield
        return
    had = name in vars(model)
    before = getattr(model, name, False)
    setattr(model, name, True)
    try:
        yield
    finally:
        if had:
            setattr(model, name, before)
        else:
            delattr(model, name)


@contextmanager
def differentiable(model: nn.Module) -> Iterator[None]:
    """Keeps bitsandbytes from repacking 4-bit weights for inference on the CPU, which blocks gradients.

    Raises:
        HeadEditError: some weights are repacked already.
    """
    flag, packed = "support_avx512bf16_for_cpu", "packing_format_for_cpu"
    disabled = []
    for name, module in model.named_modules():
        if getattr(getattr(getattr(module, "weight", None), "quant_state", None), packed, False):
            raise HeadEditError(
                f"bitsandbytes has packed {name} for inference on the CPU, and no gradient flows through it any more. "
                "Load the model again and train before generating or evaluating with it."
            )
        if getattr(module, flag, False):
            disabled.append(module)
            setattr(module, flag, False)
    try:
        yield
    finally:
        for module in disabled:
            setattr(module, flag, True)
