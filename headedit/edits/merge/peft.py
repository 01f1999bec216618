"""Edits written as an adapter of PEFT, for tools that load those: the same function in PEFT's own terms.

A scale of a projection's input is (IA)³ with the projection as a feedforward module (Liu et al. 2022, arXiv
2205.05638). An offset needs LoRA with a bias: W·z' + b = W·z + b + B·A·z + c with A = diag(g_m·m), B = W in the columns
whose scale is not 1, and c = W·(g_a·a) (Hu et al. 2022, arXiv 2106.09685; ``lora_bias`` of PEFT). Servers of many LoRAs
read no bias, and neither (IA)³ nor a rank per site: for them a scale alone is a LoRA whose sites all have one rank.
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
from headedit.errors import HeadEditError, suggest
from headedit.hf.names import portable_name
from headedit.io.describe import first_names
from headedit.io.files import write_atomically
from headedit.io.optional import import_optional
from headedit.specs import HeadSite

FORMS = ("auto", "lora")
CONFIG_FILE = "adapter_config.json"
TENSOR_FILE = "adapter_model.safetensors"


@torch.no_grad()
def to_peft(edits: AdapterSet, directory: "str | PathLike[str]", form: str = "auto") -> None:
    """Writes the effective values of the active adapter into a folder that ``PeftModel.from_pretrained`` loads.

    Edits without an offset become an (IA)³ adapter of one vector per site. Others become a LoRA with a bias, whose rank
    at a site is the number of input dimensions that are scaled, at least 1: exact, and small only with few heads.

    Args:
        edits: the adapter set; not merged.
        directory: the folder; it is made if it does not exist.
        form: ``auto``, as above; or ``lora``, a LoRA without a bias and with the same rank at every site, as servers of
            LoRAs read it, of edits without an offset.

    Raises:
        HeadEditError: PEFT is not installed, the edits act on some tokens alone, a value is NaN or infinite, a site is
            not a linear projection, or its weight, which a LoRA is computed from, is quantized, offloaded or shared; an
            offset cannot be held by the form, or the form is not known; or the folder cannot be written.
    """
    if form not in FORMS:
        raise HeadEditError(
            f"form: found {form!r}, expected one of {', '.join(FORMS)}.{suggest(form, FORMS, elsewhere=True)}"
        )
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
    offsets = [site for site, _, offset in rows if bool(offset.any())]
    if form == "lora" and offsets:
        raise HeadEditError(_no_offset(offsets))
    if form == "auto" and not offsets:
        tensors = {f"base_model.model.{site.path}.ia3_l": scale.float().cpu().view(1, -1) for site, scale, _ in rows}
        config = peft.IA3Config(**common, feedforward_modules=common["target_modules"])
    else:
        loras = _loras(edits, rows)
        ranks = {path: len(lora["lora_A.weight"]) for path, lora in loras.items()}
        if form == "lora":
            most = max(ranks.values())
            loras = {path: _padded(lora, most) for path, lora in loras.items()}
            config = peft.LoraConfig(**common, r=most, lora_alpha=most)
        else:
            config = peft.LoraConfig(
                **common, r=1, lora_alpha=1, rank_pattern=ranks, alpha_pattern=dict(ranks), lora_bias=True
            )
        tensors = {f"base_model.model.{path}.{name}": t for path, lora in loras.items() for name, t in lora.items()}
    _write(config, tensors, Path(directory))


def _loras(edits: AdapterSet, rows: list[tuple[HeadSite, Tensor, Tensor]]) -> dict[str, dict[str, Tensor]]:
    """A, B and bias of every site, by its path, on the CPU.

    Raises:
        HeadEditError: a weight cannot be read; the message says why.
    """
    owners = weight_owners(edits.model)
    loras = {}
    for site, scale, offset in rows:
        reason = why_not_mergeable(edits.model, site, owners)
        if reason is not None:
            raise HeadEditError(f"{site.path} cannot be a LoRA: {reason}")
        loras[site.path] = {name: t.cpu() for name, t in _lora(site.module, scale, offset).items()}
    return loras


def _padded(lora: dict[str, Tensor], rank: int) -> dict[str, Tensor]:
    """The same product in a higher rank, with zeros, and without its bias, which is zero."""
    a, b = lora["lora_A.weight"], lora["lora_B.weight"]
    more = rank - len(a)
    return {
        "lora_A.weight": torch.cat([a, a.new_zeros(more, a.shape[1])]),
        "lora_B.weight": torch.cat([b, b.new_zeros(len(b), more)], dim=1),
    }


def _no_offset(sites: list[HeadSite]) -> str:
    return (
        f"The edits of {first_names([site.path for site in sites])} have an offset, and a LoRA as servers read it has "
        "no bias that could hold one. Merge the edits (headedit merge MODEL EDITS OUT) and serve that checkpoint; or "
        "learn edits without an offset, EditConfig(vectors='scale')."
    )


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
