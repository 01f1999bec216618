"""Shows what `attach` would change in a model, and what will not work on it and why."""

import importlib.metadata
from os import PathLike
from typing import Any

from torch import nn

from headedit.edits import attach
from headedit.edits.merge.merge import mergeable
from headedit.hf.config import text_config
from headedit.specs import Spec

_PACKAGES = ("headedit", "torch", "transformers", "accelerate", "peft", "bitsandbytes", "nnsight")


def doctor(model: nn.Module, spec: "str | PathLike[str] | Spec | None" = None) -> list[tuple[str, str]]:
    """Shows what ``attach`` would change, as (what, value), in the order to read; the model is returned to its state.

    Args:
        model: a transformers model.
        spec: a spec, or the path of a spec file; by default the registry's.

    Raises:
        HeadEditError: there is no spec for it, or the spec does not fit or refuses it.
    """
    edits = attach(model, spec)
    config: Any = model.config
    try:
        trainable, total = edits.get_nb_trainable_parameters()
        layers = edits.sites[0].layers
        edited = len({site.layer for site in edits.sites})
        shapes = sorted({(site.heads, site.head_dim) for site in edits.sites})
        gated = any(site.position == "gated" for site in edits.sites)
        _, offset = mergeable(model, edits.sites, edits.spec)
        others = [kind for kind in edits.spec.kinds() if kind not in edits.module.kinds()]
    finally:
        edits.detach()
    rows = [
        ("model", f"{type(model).__name__}, model_type {config.model_type}, spec {edits.spec.source}"),
        ("versions", ", ".join(f"{name} {_version(name)}" for name in _PACKAGES)),
        (
            "attach would edit",
            f"{edited} of {layers} layers: {', '.join(f'{h} heads of width {d}' for h, d in shapes)}",
        ),
        ("parameters", f"{trainable:,} to train, {100 * trainable / total:.4f} % of {total:,}"),
        ("dtype", f"{_dtypes(model)}; the edits are float32, and the result is rounded once to the model's"),
        ("devices", ", ".join(sorted({str(p.device) for p in model.parameters()}))),
        ("quantization", _quantization(model)),
        ("attention", f"{text_config(model)._attn_implementation}; the edits work with any"),
        ("checkpointing", _checkpointing_support(model)),
        ("position", "behind a gate: an offset is not gated" if gated else "raw: what the attention made"),
        ("an offset merges", offset),
    ]
    if others:
        rows.append(("other sites", f"of kind {', '.join(others)}: EditConfig(sites=[...])"))
    if any(p.is_meta for p in model.parameters()) and not hasattr(model, "hf_device_map"):
        rows.append(("will not work", "weights on the meta device hold no values: load them before running it"))
    return rows


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _dtypes(model: nn.Module) -> str:
    return ", ".join(sorted({str(p.dtype).removeprefix("torch.") for p in model.parameters()}))


def _quantization(model: nn.Module) -> str:
    if not getattr(model, "is_quantized", False):
        return "none"
    method = getattr(model, "quantization_method", None)
    return f"{getattr(method, 'value', method)}; training works, merging needs the model in full precision"


def _checkpointing_support(model: nn.Module) -> str:
    if not getattr(model, "supports_gradient_checkpointing", False):
        return "transformers offers none for this class"
    return "offered, with use_reentrant=False by default; headedit spec check compares the gradients"
