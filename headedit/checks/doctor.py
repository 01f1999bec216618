"""Shows what `attach` would change in a model, and what will not work on it and why."""

import importlib.metadata
from collections.abc import Mapping
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
    return doctor_rows(examine(model, spec))


def doctor_rows(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What ``examine`` found, as (what, value), in the order to read."""
    heads = ", ".join(f"{h} heads of width {d}" for h, d in found["heads"])
    parameters, total = found["trainable_parameters"], found["parameters"]
    rows = [
        ("model", f"{found['class']}, model_type {found['model_type']}, spec {found['spec']}"),
        ("versions", ", ".join(f"{name} {version or 'not installed'}" for name, version in found["versions"].items())),
        ("attach would edit", f"{found['edited_layers']} of {found['layers']} layers: {heads}"),
        ("parameters", f"{parameters:,} to train, {100 * parameters / total:.4f} % of {total:,}"),
        (
            "dtype",
            f"{', '.join(found['dtypes'])}; the edits are float32, and the result is rounded once to the model's",
        ),
        ("devices", ", ".join(found["devices"])),
        ("quantization", _quantization(found["quantization"])),
        ("attention", f"{found['attention']}; the edits work with any"),
        ("checkpointing", _checkpointing_support(found["gradient_checkpointing"])),
        ("position", "behind a gate: an offset is not gated" if found["gated"] else "raw: what the attention made"),
        ("an offset merges", found["offset_merges"]),
    ]
    if found["other_sites"]:
        rows.append(("other sites", f"of kind {', '.join(found['other_sites'])}: EditConfig(sites=[...])"))
    return rows + [("will not work", reason) for reason in found["will_not_work"]]


def examine(model: nn.Module, spec: "str | PathLike[str] | Spec | None" = None) -> dict[str, Any]:
    """What ``doctor`` shows, as plain data by name; the model is returned to its state.

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
    no_values = any(p.is_meta for p in model.parameters()) and not hasattr(model, "hf_device_map")
    method = getattr(model, "quantization_method", None)
    return {
        "class": type(model).__name__,
        "model_type": config.model_type,
        "spec": str(edits.spec.source),
        "versions": {name: _version(name) for name in _PACKAGES},
        "layers": layers,
        "edited_layers": edited,
        "heads": shapes,
        "trainable_parameters": trainable,
        "parameters": total,
        "dtypes": sorted({str(p.dtype).removeprefix("torch.") for p in model.parameters()}),
        "devices": sorted({str(p.device) for p in model.parameters()}),
        "quantization": str(getattr(method, "value", method)) if getattr(model, "is_quantized", False) else None,
        "attention": text_config(model)._attn_implementation,
        "gradient_checkpointing": bool(getattr(model, "supports_gradient_checkpointing", False)),
        "gated": gated,
        "offset_merges": offset,
        "other_sites": others,
        "will_not_work": ["weights on the meta device hold no values: load them before running it"] * no_values,
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _quantization(method: str | None) -> str:
    return "none" if method is None else f"{method}; training works, merging needs the model in full precision"


def _checkpointing_support(offered: bool) -> str:
    if not offered:
        return "transformers offers none for this class"
    return "offered, with use_reentrant=False by default; headedit spec check compares the gradients"
