"""Reads from a run's config how it trains, as far as memory depends on it."""

from typing import Any, Literal

import torch

from headedit.errors import HeadEditError
from headedit.hf.config import context_length, text_config
from headedit.training.config import RunConfig
from headedit.training.memory_plan.setup import DTYPES, Setup

_FLASH = ("flash_attention_2", "flash_attention_3", "flash_attention_4")
_BYTE_EACH = {"int8": "8bit", "int4": "8bit"}


def setup_of(run: RunConfig, config: Any, *, for_gpu: bool = False, **changes: Any) -> Setup:
    """The setup of a run.

    Args:
        run: the run.
        config: of its model, as transformers reads it.
        for_gpu: plan for a GPU where the run names no device and this machine has none.
        changes: fields of ``Setup`` that win over the run's.

    Raises:
        HeadEditError: a value is impossible, or neither the run nor the model's config gives the length of an example.
    """
    text, training = text_config(config), run.training
    length = changes.get("tokens") or run.data.max_length or context_length(config)
    if length is None:
        raise HeadEditError("data: max_length: is missing, and the model's config does not give its context length.")
    dtype = str(getattr(text, "dtype", None)).removeprefix("torch.") if run.model.dtype == "auto" else run.model.dtype
    device = changes.get("device") or _device(run.model.device, for_gpu)
    found = {
        "batch_size": run.recipe["batch_size"],
        "eval_batch_size": training.get("per_device_eval_batch_size"),
        "tokens": length,
        "dtype": dtype if dtype in DTYPES else "float32",
        "quantization": _BYTE_EACH.get(run.model.quantization or "", run.model.quantization),
        "checkpointing": bool(training.get("gradient_checkpointing")),
        "attention": _attention(run.model.attn_implementation, device),
        "device": device,
        "devices": max(1, torch.cuda.device_count()) if run.model.device_map is not None or training.get("fsdp") else 1,
        "split": "fsdp" if training.get("fsdp") else "device_map",
    }
    return Setup(**{**found, **changes})


def _device(name: str | None, for_gpu: bool) -> Literal["cuda", "cpu"]:
    if name is not None:
        return "cuda" if name.startswith("cuda") else "cpu"
    return "cuda" if for_gpu or torch.cuda.is_available() else "cpu"


def _attention(name: str | None, device: str) -> str | None:
    if name == "best":
        from transformers.utils import is_flash_attn_2_available

        return "flash" if device == "cuda" and is_flash_attn_2_available() else None
    return "flash" if name in _FLASH else name
