"""Quantized base models: which modules are, and contexts in which edits of them can be trained."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from headedit.errors import HeadEditError

_UNPACK = (
    "Load the file with its weights unpacked, by headedit.load_model('FOLDER/FILE.gguf') or transformers' "
    "GgufConfig(dequantize=True)"
)


def quantization_of(module: nn.Module) -> str | None:
    """What holds the weight of a module that is quantized, such as ``GGUF blocks``; None where it is not.

    The weights of bitsandbytes are known by their dtype, and left to the caller.
    """
    if getattr(module, "ggml_type", None) is not None or type(module).__name__ == "GgufExperts":
        return "GGUF blocks"
    if isinstance(getattr(module, "W_q", None), Tensor):
        return "HQQ"
    weight = module._parameters.get("weight")
    if weight is not None and type(weight).__module__.partition(".")[0] == "torchao":
        return f"torchao's {type(weight).__name__}"
    return None


def full_precision(module: nn.Module) -> str:
    """How to load the model of a quantized module in full precision, as the beginning of a sentence."""
    return _UNPACK if quantization_of(module) == "GGUF blocks" else "Load the base model in full precision"


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
    """Keeps gradients flowing through quantized layers.

    bitsandbytes does not repack 4-bit weights for inference on the CPU, and layers of GGUF blocks unpack them for
    short inputs too, for which they otherwise call a kernel that has no gradient.

    Raises:
        HeadEditError: some weights are repacked already, or a quantized layer has no gradient.
    """
    flag, packed = "support_avx512bf16_for_cpu", "packing_format_for_cpu"
    disabled: list[Any] = []
    unpacking: list[nn.Module] = []
    try:
        for name, module in model.named_modules():
            if getattr(getattr(getattr(module, "weight", None), "quant_state", None), packed, False):
                raise HeadEditError(
                    f"bitsandbytes has packed {name} for inference on the CPU, and no gradient flows through it any "
                    "more. Load the model again and train before generating or evaluating with it."
                )
            if getattr(module, flag, False):
                disabled.append(module)
                setattr(module, flag, False)
            if type(module).__name__ == "GgufLinear" and "forward" not in vars(module):
                unpacking.append(module)
                module.forward = _for_long_inputs(module)
        _check_gradients(model)
        yield
    finally:
        for module in disabled:
            setattr(module, flag, True)
        for module in unpacking:
            del module.forward


def _for_long_inputs(module: Any) -> Callable[[Tensor], Tensor]:
    """The forward of a layer of GGUF blocks, given more rows than its kernel takes, so that it unpacks the weight."""
    from transformers.integrations.gguf.kernels import MAX_GEMV_ROWS

    def forward(x: Tensor) -> Tensor:
        flat = x.reshape(-1, module.in_features)
        rows = flat.shape[0]
        padded = functional.pad(flat, (0, 0, 0, max(0, MAX_GEMV_ROWS + 1 - rows)))
        result: Tensor = type(module).forward(module, padded)
        return result[:rows].reshape(*x.shape[:-1], module.out_features)

    return forward


def _check_gradients(model: nn.Module) -> None:
    """Raises a HeadEditError where a quantized layer has no gradient for its input; one of each kind is tried."""
    tried = set()
    for name, module in model.named_modules():
        how = quantization_of(module)
        weight = module._parameters.get("weight", getattr(module, "W_q", None))
        kind = (type(module), how)
        if how is None or kind in tried or (weight is not None and weight.is_meta):
            continue
        tried.add(kind)
        if type(module).__name__ == "GgufExperts" or _cuts_gradients(module, weight, model):
            raise HeadEditError(
                f"No gradient flows through {name}, whose weights are {how}: it computes with a kernel that has none, "
                f"so edits below it would learn nothing. {_other_weights(module)}"
            )


def _cuts_gradients(module: Any, weight: Tensor | None, model: nn.Module) -> bool:
    width = getattr(module, "in_features", None)
    if weight is None or not isinstance(width, int):
        return False  # such as an embedding
    computed: Any = getattr(module, "compute_dtype", None) or model.dtype
    dtype = weight.dtype if weight.is_floating_point() else computed
    with torch.enable_grad():
        z = torch.zeros(1, 2, width, dtype=dtype, device=weight.device, requires_grad=True)
        return not module.forward(z).requires_grad


def _other_weights(module: nn.Module) -> str:
    if quantization_of(module) == "GGUF blocks":
        return f"{_UNPACK}."
    return (
        "Quantize the weights alone and not the activations, such as by torchao's Int8WeightOnlyConfig, or load the "
        "model in full precision."
    )
