"""Which base model a run loads, and how: the section ``model`` of a run."""

from dataclasses import dataclass
from typing import Any

from torch import nn

from headedit.errors import HeadEditError
from headedit.hf.loading import Dtype, Quantization, load_config, load_model, load_tokenizer
from headedit.io import strict


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The base model.

    Fields:
        name: a folder that ``save_pretrained`` wrote, or the id of a causal LM on the hub.
        revision: branch, tag or commit on the hub.
        dtype: ``float32``, ``bfloat16`` or ``float16``; ``auto`` for the one that the weights were saved in.
        device: such as ``cpu`` or ``cuda:0``; by default the first GPU, or a process's own, or the CPU.
        device_map: puts one big model on several devices, as accelerate does: ``auto``, ``balanced``, ``sequential``,
            or a device for each module. In place of ``device``.
        quantization: ``4bit`` (NF4) or ``8bit``, by bitsandbytes; None for neither.
        attn_implementation: ``sdpa``, ``eager``, ``flash_attention_2`` and whatever else transformers has; ``best`` for
            FlashAttention where it is installed and works on this model, and else what transformers takes by itself.
    """

    name: str
    revision: str | None = None
    dtype: Dtype = "auto"
    device: str | None = None
    device_map: str | dict[str, int | str] | None = None
    quantization: Quantization | None = None
    attn_implementation: str | None = None

    def __post_init__(self) -> None:
        strict.check(self)
        if not self.name:
            raise HeadEditError("name: found an empty text, expected a folder or the id of a model.")
        if self.device is not None and self.device_map is not None:
            raise HeadEditError(
                f"device_map: found {self.device_map!r} beside the device '{self.device}'; give one of the two."
            )

    def load(self) -> nn.Module:
        """The model, in eval mode."""
        return load_model(
            self.name,
            revision=self.revision,
            dtype=self.dtype,
            device=self.device,
            device_map=self.device_map,
            quantization=self.quantization,
            attn_implementation=self.attn_implementation,
        )

    def load_config(self) -> Any:
        """The model's config, without its weights."""
        return load_config(self.name, revision=self.revision)

    def load_tokenizer(self) -> Any:
        """The model's tokenizer."""
        return load_tokenizer(self.name, revision=self.revision)
