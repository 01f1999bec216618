"""``ModelConfig``: the section ``model`` of a run, which base model is loaded and how."""

from dataclasses import dataclass
from typing import Any, cast

from torch import nn

from headedit.errors import HeadEditError
from headedit.hf.loading import Dtype, Quantization, load_config, load_model, load_tokenizer
from headedit.io import strict


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The base model of a run, and how it is loaded.

    Fields:
        name: a folder that ``save_pretrained`` wrote, the id of a causal LM on the Hugging Face hub, or a GGUF file in
            either, such as ``folder/model.gguf``.
        gguf_file: the name of a GGUF file in the folder or repository ``name``, as in transformers.
        revision: branch, tag or commit on the hub; None for the default branch.
        dtype: ``float32``, ``bfloat16`` or ``float16``; ``auto`` for the dtype in which the weights were saved.
        device: a device such as ``cpu`` or ``cuda:0``; None for the GPU of this process, or the CPU if there is none.
        device_map: spreads a large model over several devices, as in accelerate: ``auto``, ``balanced``,
            ``sequential``, or a device per module; instead of ``device``.
        quantization: ``4bit`` (NF4) or ``8bit``, by bitsandbytes; ``int8`` or ``int4``, by torchao; ``gguf`` to leave
            the weights of a GGUF file in their blocks; None for no quantization, and to unpack a GGUF file.
        attn_implementation: ``sdpa``, ``eager``, ``flash_attention_2`` or any other name that transformers knows;
            ``best`` for FlashAttention if it is installed and works on this model; None for transformers' default.

    Raises:
        HeadEditError: a value is of a wrong type or not one of those allowed, or ``device`` and ``device_map`` are
            both given.
    """

    name: str
    gguf_file: str | None = None
    revision: str | None = None
    dtype: Dtype = "auto"
    device: str | None = None
    device_map: str | dict[str, int | str] | None = None
    quantization: Quantization | str | None = None
    attn_implementation: str | None = None

    def __post_init__(self) -> None:
        strict.check(self)
        if not self.name:
            raise HeadEditError("name: found an empty string, expected a folder or the id of a model.")
        if self.quantization is not None:
            strict.convert(Quantization, self.quantization, "quantization")  # names the nearest
        if self.gguf_file is not None and (self.name.endswith(".gguf") or not self.gguf_file.endswith(".gguf")):
            raise HeadEditError(
                f"gguf_file: found '{self.gguf_file}' in '{self.name}', expected the name of a .gguf file in a folder."
            )
        if self.device is not None and self.device_map is not None:
            raise HeadEditError(
                f"device_map: found {self.device_map!r} together with the device '{self.device}'; give one of the two."
            )

    @property
    def source(self) -> str:
        """What is loaded: the folder or id, with the GGUF file where there is one."""
        return self.name if self.gguf_file is None else f"{self.name.rstrip('/')}/{self.gguf_file}"

    def load(self) -> nn.Module:
        """Loads the model, in eval mode."""
        return load_model(
            self.source,
            revision=self.revision,
            dtype=self.dtype,
            device=self.device,
            device_map=self.device_map,
            quantization=cast("Quantization | None", self.quantization),
            attn_implementation=self.attn_implementation,
        )

    def load_config(self) -> Any:
        """Loads the model's config, without its weights."""
        return load_config(self.source, revision=self.revision)

    def load_tokenizer(self) -> Any:
        """Loads the model's tokenizer."""
        return load_tokenizer(self.source, revision=self.revision)
