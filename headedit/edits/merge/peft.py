"""Edits written as an adapter of PEFT, for tools that load those: the same function in PEFT's own terms.

A scale of a projection's input is (IA)³ with the projection as a feedforward module (Liu et al. 2022, arXiv
2205.05638).
An offset needs LoRA with a bias: W·z' + b = W·z + b + B·A·z + c with A = diag(g_m·m), B = W in the columns whose scale
is not 1, and c = W·(g_a·a) (Hu et al. 2022, arXiv 2106.09685; ``lora_bias`` of PEFT).
"""

import tempfile
from os import PathLike
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from headedit.edits.adapter_set import AdapterSet
from headedit.edits.files.values import check_effective
from headedit.edits.merge.fold import check_attached, wide_scale_and_offset
from headedit.edits.merge.projection import weight_owners, why_not_mergeable
from headedit.edits.positions import check_everywhere
from headedit.errors import HeadEditError
from headedit.hf.names import portable_name
from headedit.io.files import write_atomically
from headedit.io.optional import import_optional

CONFIG_FILE = "adapter_config.json"
TENSOR_FILE = "adapter_model.safetensors"


@torch.no_grad()
def to_peft(edits: AdapterSet, directory: "str | PathLike[str]") -> None:
    """Writes the effective values of the active adapter into a folder that ``PeftModel.from_pretrained`` loads.

    Edits without an offset become an (IA)³ adapter of one vector per site. Others become a LoRA with a bias, whose rank
    at a site is the number of input dimensions that are scaled, at least 1: exact, and small only with few heads.

    Args:
        edits: the adapter set; not merged.
        directory: the folder; it is made if it does not exist.

    Raises:
        HeadEditError: PEFT is not installed, the edits act on some tokens alone, a value is NaN or infinite, a site is
            not a linear projection, or its weight, which a LoRA is computed from, is quantized, offloaded or shared; or
            the folder cannot be written.
    """
    check_attached(edits)
    if edits.merged is not None:
        raise HeadEditError("These edits are merged; call unmerge_adapter() first, as the base model must be plain.")
    check_everywhere(edits.module.config.positions, "they cannot be an adapter of PEFT")
    peft = import_optional("peft", "Writing an adapter of PEFT")
    check_effective(edits.module)
    rows = [(site, *wide_scale_and_offset(edit)) for site, edit in edits.module.pairs()]
    rows = [row for row in rows if bool((row[1] != 1).any()) or bool(row[2].any())] or rows[:1]
    for site, _, _ in rows:
        if not isinstance(site.module, nn.Linear | Conv1D) or _inputs(site.module) != site.width:
            raise HeadEditError(
                f"{site.path} cannot be an adapter of PEFT: its class {type(site.module).__name__} is not a "
                "projection that PEFT knows. Keep the edits with save_pretrained."
            )
    common: dict[str, Any] = {
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": portable_name(getattr(edits.model.config, "_name_or_path", "")) or None,
        "target_modules": [site.path for site, _, _ in rows],
        "fan_in_fan_out": isinstance(rows[0][0].module, Conv1D),
        "inference_mode": True,
    }
    tensors: dict[str, Tensor] = {}
    config: Any
    if not any(bool(offset.any()) for _, _, offset in rows):
        for site, scale, _ in rows:
            tensors[f"base_model.model.{site.path}.ia3_l"] = scale.float().cpu().view(1, -1)
        config = peft.IA3Config(**common, feedforward_modules=common["target_modules"])
    else:
        owners = weight_owners(edits.model)
        ranks = {}
        for site, scale, offset in rows:
            reason = why_not_mergeable(edits.model, site, owners)
            if reason is not None:
                raise HeadEditError(f"{site.path} cannot be a LoRA: {reason}")
            lora = _lora(site.module, scale, offset)
            tensors |= {f"base_model.model.{site.path}.{name}": t.cpu() for name, t in lora.items()}
            ranks[site.path] = len(lora["lora_A.weight"])
        config = peft.LoraConfig(
            **common, r=1, lora_alpha=1, rank_pattern=ranks, alpha_pattern=dict(ranks), lora_bias=True
        )
    _write(config, tensors, Path(directory))


def _lora(module: nn.Module, scale: Tensor, offset: Tensor) -> dict[str, Tensor]:
    """A [rank, in], B [out, rank] and its bias [out], in float32."""
    weight = module._parameters["weight"]
    assert weight is not None
    matrix = (weight.T if isinstance(module, Conv1D) else weight).float()  # [out, in]
    delta = (scale - 1).float().to(matrix.device)
    scaled = delta.nonzero().flatten()
    if not len(scaled):
        scaled = scaled.new_zeros(1)  # a LoRA has a rank of 1 at least; delta is 0 there
    select = torch.zeros(len(scaled), matrix.shape[1], device=matrix.device)
    select[torch.arange(len(scaled)), scaled] = delta[scaled]
    return {
        "lora_A.weight": select,
        "lora_B.weight": matrix[:, scaled].contiguous(),
        "lora_B.bias": matrix @ offset.float().to(matrix.device),
    }


def _inputs(module: nn.Module) -> int:
    weight = module._parameters["weight"]
    assert weight is not None
    return int(module.in_features) if isinstance(module, nn.Linear) else int(weight.shape[0])


def _write(config: Any, tensors: dict[str, Tensor], folder: Path) -> None:
    payload = safetensors.torch.save(tensors, metadata={"format": "pt"})
    with tempfile.TemporaryDirectory() as scratch:
        config.save_pretrained(scratch)
        written = (Path(scratch) / CONFIG_FILE).read_bytes()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / TENSOR_FILE, payload)
        write_atomically(folder / CONFIG_FILE, written)
    except OSError as error:
        raise HeadEditError(f"{folder}: the adapter cannot be written ({error.strerror}).") from None
