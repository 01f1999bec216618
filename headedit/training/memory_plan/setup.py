"""How a run trains, as far as memory depends on it."""

from dataclasses import dataclass
from typing import Literal

import torch

from headedit.errors import HeadEditError
from headedit.io import strict

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, kw_only=True)
class Setup:
    """How a run trains.

    Fields:
        batch_size: sequences per device and forward pass; accumulation of gradients does not change memory.
        tokens: length of the longest sequence.
        dtype: of the weights.
        quantization: bitsandbytes' 4-bit or 8-bit weights in the linear layers; None for none.
        checkpointing: gradient checkpointing, layer by layer.
        attention: ``eager``, ``sdpa`` or ``flash`` (FlashAttention, which takes no mask over pairs of tokens). None for
            the default of transformers: sdpa where the model has it.
        device: kind of device, on which the kernels of attention depend.
        devices: number of devices.
        split: how they share the model: ``device_map`` puts whole layers on each, ``fsdp`` a part of every weight.
    """

    batch_size: int = 4
    tokens: int = 2048
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    quantization: Literal["4bit", "8bit"] | None = None
    checkpointing: bool = False
    attention: Literal["eager", "sdpa", "flash"] | None = None
    device: Literal["cuda", "cpu"] = "cuda"
    devices: int = 1
    split: Literal["device_map", "fsdp"] = "device_map"

    def __post_init__(self) -> None:
        strict.check(self)
        for name, least in (("batch_size", 1), ("tokens", 2), ("devices", 1)):
            if getattr(self, name) < least:
                raise HeadEditError(f"{name}: found {getattr(self, name)}, expected {least} or more.")

    @property
    def padded(self) -> bool:
        """Whether a batch has padding, and so a mask: where it has several sequences."""
        return self.batch_size > 1
