"""``ModelConfig``: the section ``model`` of a run, which base model is loaded and how."""

from dataclasses import dataclass
from typing import Any

from torch import nn

from headedit.errors import HeadEditError
from headedit.hf.loading import Dtype, Quantization, load_config, load_model, load_tokenizer
from headedit.io import strict


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The base model of a run, and how it is loaded.

    Fields:
        name: a folder that ``save_pretrained`` wrote, or the id of a causal LM on the Hugging Face hub.
        revision: branch, tag or commit on the hub; None for the default branch.
        dtype: ``float32``, ``bfloat16`` or ``float16``; ``auto`` for the dtype in which the weights were saved.
        device: a device such as ``cpu`` or ``cuda:0``; None for the GPU of this process, or the CPU if there is none.
        device_map: spreads a large model over several devices, as in accelerate: ``auto``, ``balanced``,
            ``sequential``, or a device per module; instead of ``device``.
        quantization: ``4bit`` (NF4) or ``8bit``, by bitsandbytes; None for no quantization.
        attn_implementation: ``sdpa``, ``eager``, ``flash_attention_2`` or any other name that transformers knows;
            ``best`` for FlashAttention if it is installed and works on this model; None for transformers' default.

    Raises:
        HeadEditError: a value is of a wrong type or not one of those allowed, or ``device`` and ``device_map`` are
            both given.
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
            raise HeadEditError("name: found an empty string, expected a folder or the id of a model.")
        if self.device is not None and self.device_map is not None:
            raise HeadEditError(
                f"device_map: found {self.device_map!r} together with the device '{self.device}'; give one of the two."
            )

    def load(self) -> nn.Module:
        """Loads the model, in eval mode."""
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
        """Loads the model's config, without its weights."""
        return load_config(self.name, revision=self.revision)

    def load_tokenizer(self) -> Any:
        """Loads the model's tokenizer."""
        return load_tokenizer(self.name, revision=self.revision)
