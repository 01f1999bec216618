"""Edits on disk: ``headedit_config.json`` says what they are and fit, ``headedit.safetensors`` holds them.

The config names the base model and its shape, the spec and its hash, the versions and every site.
"""

from os import PathLike
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from headedit.edits.attach import check_unattached
from headedit.edits.config import EditConfig
from headedit.edits.files import CONFIG_FILE, SITE_KEYS, TENSOR_FILE, locate, read_config, read_tensors, write_pair
from headedit.edits.handle import HeadEdits
from headedit.edits.module import EditModule
from headedit.errors import HeadEditError
from headedit.specs import HeadSite, Spec, find_sites, find_spec
from headedit.specs.numbers import text_config
from headedit.specs.registry import model_type_of
from headedit.specs.strict import build
from headedit.version import __version__

_SHAPE_KEYS = ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "vocab_size")


def save(edits: HeadEdits, directory: "str | PathLike[str]") -> None:
    """Writes the edits into a folder, which is made if it is not there; see ``HeadEdits.save_pretrained``."""
    config = {
        "versions": {
            "headedit": __version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
        "base_model": _describe(edits.model),
        "spec": edits.spec.to_dict(),
        "spec_sha256": edits.spec.digest(),
        "config": vars(edits.config),
        "sites": [_site_row(site) for site in edits.sites],
    }
    write_pair(Path(directory), config, _tensors(edits.module))


def load(
    model: nn.Module,
    path: "str | PathLike[str]",
    *,
    spec: "str | PathLike[str] | Spec | None" = None,
    revision: str | None = None,
) -> HeadEdits:
    """Attaches saved edits to a fresh base model.

    Args:
        model: the base model, without edits.
        path: a folder that ``save_pretrained`` wrote, or the id of a repository on the Hugging Face hub.
        spec: a spec or spec file to use; by default the registry's, or else the one saved with the edits.
        revision: the revision of a hub repository.

    Returns:
        The handle; the model's logits are those of the model that was saved, bit for bit.

    Raises:
        HeadEditError: nothing is found, a file is damaged, or the edits were made for another model, in
            which case the message lists the differences.
    """
    check_unattached(model)
    folder = locate(path, revision)
    saved = read_config(folder)
    config = EditConfig.from_dict(saved["config"], f"{folder / CONFIG_FILE}: config")
    tensors = read_tensors(folder, saved)
    differences = _differences(saved["base_model"], _describe(model), ("model_type", *_SHAPE_KEYS))
    if differences:
        raise HeadEditError(_another_model(folder, saved, differences))
    found = _spec_for(model, spec, saved, folder)
    wanted = saved["sites"]
    names = {row["name"] for row in wanted}
    sites = [
        site for site in find_sites(model, found, config.sites, mlp_groups=config.mlp_groups) if site.name in names
    ]
    if [_site_row(site) for site in sites] != wanted:
        differences = _site_differences(wanted, [_site_row(site) for site in sites])
        raise HeadEditError(_another_model(folder, saved, differences))
    edits = HeadEdits(model, found, config, sites)
    try:
        restore(edits.module, tensors, str(folder / TENSOR_FILE))
    except HeadEditError:
        edits.detach()
        raise
    return edits


@torch.no_grad()
def restore(edits: EditModule, tensors: dict[str, Tensor], where: str) -> None:
    """Copies saved tensors into edits of the same shape.

    Raises:
        HeadEditError: names, shapes or values do not fit; nothing has been copied then.
    """
    expected = _tensors(edits)
    for name in sorted(expected.keys() | tensors.keys()):
        if name not in tensors or name not in expected:
            raise HeadEditError(f"{where}: the tensor '{name}' is {'missing' if name in expected else 'not known'}.")
        if tensors[name].shape != expected[name].shape:
            found, wanted = tuple(tensors[name].shape), tuple(expected[name].shape)
            raise HeadEditError(f"{where}: the tensor '{name}' has shape {found}, expected {wanted}.")
        if not (tensors[name].is_floating_point() and torch.isfinite(tensors[name]).all()):
            raise HeadEditError(f"{where}: the tensor '{name}' holds NaN, infinity or no floating-point numbers.")
    for name, parameter in _parameters(edits).items():
        parameter.data = tensors[name].to(parameter.device)  # in the dtype it was saved in


def load_tensors(edits: HeadEdits, directory: "str | PathLike[str]") -> None:
    """Puts the values saved in a folder into edits that are attached already, as resuming a run does.

    Raises:
        HeadEditError: the folder holds no such edits.
    """
    folder = Path(directory)
    restore(edits.module, read_tensors(folder, read_config(folder)), str(folder / TENSOR_FILE))


def read(directory: "str | PathLike[str]") -> EditModule:
    """Saved edits by themselves, without a model, for looking at.

    Raises:
        HeadEditError: the folder holds no edits, or a file is damaged.
    """
    folder = Path(directory)
    saved = read_config(folder)
    where = str(folder / CONFIG_FILE)
    sites = [build(HeadSite, {**row, "path": row["name"], "module": nn.Identity()}, where) for row in saved["sites"]]
    module = EditModule(sites, EditConfig.from_dict(saved["config"], f"{where}: config"))
    restore(module, read_tensors(folder, saved), str(folder / TENSOR_FILE))
    return module


def _parameters(edits: EditModule) -> dict[str, nn.Parameter]:
    return {
        f"{site.name}.{name}": parameter for site, edit in edits.pairs() for name, parameter in edit.named_parameters()
    }


def _tensors(edits: EditModule) -> dict[str, Tensor]:
    return {name: p.detach().cpu().contiguous() for name, p in _parameters(edits).items()}


def _describe(model: nn.Module) -> dict[str, Any]:
    config: Any = model.config
    text = text_config(model)
    described = {
        "name_or_path": getattr(config, "_name_or_path", ""),
        "revision": getattr(config, "_commit_hash", None),
        "model_type": model_type_of(model),
        "class": type(model).__name__,
    }
    for key in _SHAPE_KEYS:
        try:
            described[key] = getattr(text, key)
        except (AttributeError, RuntimeError):  # not every config has it, and some raise where layers differ
            continue
    return described


def _site_row(site: HeadSite) -> dict[str, Any]:
    return {key: getattr(site, key) for key in SITE_KEYS}


def _spec_for(model: nn.Module, spec: "str | PathLike[str] | Spec | None", saved: dict[str, Any], folder: Path) -> Spec:
    try:
        return find_spec(model, spec)
    except HeadEditError:
        if spec is not None:
            raise
    return build(Spec, saved["spec"], f"{folder / CONFIG_FILE}: spec")


def _differences(saved: dict[str, Any], live: dict[str, Any], keys: tuple[str, ...]) -> list[str]:
    return [f"{key}: edits {saved.get(key)}, model {live.get(key)}" for key in keys if saved.get(key) != live.get(key)]


def _site_differences(saved: list[dict[str, Any]], live: list[dict[str, Any]]) -> list[str]:
    by_name = {row["name"]: row for row in live}
    rows = []
    for row in saved:
        if row["name"] not in by_name:
            rows.append(f"{row['name']}: not in this model")
        else:
            rows += _differences({**row}, by_name[row["name"]], SITE_KEYS)
    return rows or ["the sites stand in another order"]


def _another_model(folder: Path, saved: dict[str, Any], differences: list[str]) -> str:
    shown = "; ".join(differences[:8]) + (f"; and {len(differences) - 8} more" if len(differences) > 8 else "")
    base = saved["base_model"].get("name_or_path") or "an unnamed model"
    return f"{folder}: these edits were made for another model ({base}). They differ in {shown}."
