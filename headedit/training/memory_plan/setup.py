"""How a run trains, as far as memory depends on it."""

from dataclasses import dataclass
from typing import Literal

import torch

from headedit.errors import HeadEditError
from headedit.io import strict
from headedit.training.validation import eval_batch_size

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, kw_only=True)
class Setup:
    """How a run trains.

    Fields:
        batch_size: sequences per device and forward pass; accumulation of gradients does not change memory.
        eval_batch_size: the same in validation; None for that of recipes.
        tokens: length of the longest sequence.
        dtype: of the weights.
        quantization: bitsandbytes' 4-bit or 8-bit weights in the linear layers; None for none.
        checkpointing: gradient checkpointing, layer by layer.
        attention: ``eager``, ``sdpa`` or ``flash`` (FlashAttention, which takes no mask over pairs of tokens). None for
            the default of transformers: sdpa where the model has it.
        device: kind of device, on which the kernels of attention depend.
        devices: number of devices.
        split: how they share the model: ``device_map`` puts whole layers on each, ``fsdp`` a part of every weight,
            which is gathered where it is used, and ``tensor_parallel`` a part of every layer, by transformers' plan.
    """

    batch_size: int = 4
    eval_batch_size: int | None = None
    tokens: int = 2048
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    quantization: Literal["4bit", "8bit"] | None = None
    checkpointing: bool = False
    attention: Literal["eager", "sdpa", "flash"] | None = None
    device: Literal["cuda", "cpu"] = "cuda"
    devices: int = 1
    split: Literal["device_map", "fsdp", "tensor_parallel"] = "device_map"

    def __post_init__(self) -> None:
        strict.check(self)
        for name, least in (("batch_size", 1), ("eval_batch_size", 1), ("tokens", 2), ("devices", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise HeadEditError(f"{name}: found {value}, expected {least} or more.")

    @property
    def whole_logits(self) -> bool:
        """Whether all logits of a batch are made at once, as the trainer does where devices share each weight."""
        return self.split != "device_map"

    @property
    def in_validation(self) -> int:
        """Sequences per device and forward pass in validation."""
        if self.eval_batch_size is not None:
            return self.eval_batch_size
        return eval_batch_size(self.batch_size, checkpointing=self.checkpointing)
