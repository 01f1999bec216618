"""Linear layers with the bytes of bitsandbytes' quantization, on the meta device and without bitsandbytes."""

from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

_BLOCK, _BLOCKS = 64, 256  # weights of 4 bits that share a scale, and scales that share one
_CODES = 16 + 256  # values that 4 bits stand for, and those of a scale


def pack(model: nn.Module, kind: Literal["4bit", "8bit"]) -> None:
    """Packs the weights that ``from_pretrained`` with a ``BitsAndBytesConfig`` would, in place.

    4 bits come with a byte for 64 weights and a float32 for 256 of these (QLoRA, arXiv 2305.14314, with its double
    quantization), 8 bits with a float32 for each row (LLM.int8(), arXiv 2208.07339). A weight is unpacked while
    it is used, in the forward and in the backward pass; the 8-bit product packs its input too, and saves it.
    """
    from transformers.pytorch_utils import Conv1D
    from transformers.quantizers.base import get_keys_to_not_convert
    from transformers.quantizers.quantizers_utils import should_convert_module

    kept = get_keys_to_not_convert(model)
    for name, module in model.named_modules():
        if (type(module) is nn.Linear or isinstance(module, Conv1D)) and should_convert_module(name, kept):
            _pack(module, kind)


def _pack(module: Any, kind: str) -> None:
    weight = module.weight
    rows, columns = weight.shape if isinstance(module, nn.Linear) else weight.shape[::-1]
    if kind == "4bit":
        blocks = -(-weight.numel() // _BLOCK)
        codes = weight.new_empty(-(-weight.numel() // 2) + blocks, dtype=torch.uint8)
        scales = -(-blocks // _BLOCKS) + _CODES
    else:
        codes, scales = weight.new_empty(rows, columns, dtype=torch.int8), rows
    module.weight = nn.Parameter(codes, requires_grad=False)
    module.scales = nn.Parameter(weight.new_empty(scales, dtype=torch.float32), requires_grad=False)
    module.forward = partial(_forward, module, (rows, columns), kind == "8bit")


def _forward(module: Any, shape: tuple[int, int], packs_input: bool, x: Tensor) -> Tensor:
    y: Tensor = _Product.apply(x, shape, packs_input)  # type: ignore[no-untyped-call]
    return y if module.bias is None else y + module.bias


class _Product(torch.autograd.Function):
    """x @ W.T with a weight that exists only while it is used."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, shape: tuple[int, int], packs_input: bool) -> Tensor:
        ctx.shape = shape
        if packs_input:
            ctx.save_for_backward(x)
            codes = torch.empty_like(x, dtype=torch.int8)
            return torch.nn.functional.linear(codes.to(x.dtype), x.new_empty(shape))
        return torch.nn.functional.linear(x, x.new_empty(shape))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        gradient = gradients[0]
        return gradient @ gradient.new_empty(ctx.shape), None, None
