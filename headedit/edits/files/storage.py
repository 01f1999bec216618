"""Edits on disk: ``headedit_config.json`` says what they are and fit, ``headedit.safetensors`` holds them.

The config names the base model and its shape, the spec and its hash, the versions and every site; the format is in
``headedit.edits.files.format``.
"""

from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from headedit.edits.adapter import Adapter, edited_sites
from headedit.edits.attach import check_unattached
from headedit.edits.config import EditConfig
from headedit.edits.files.card import check_metrics, write_card
from headedit.edits.files.compatibility import check_model, check_sites, describe, site_row
from headedit.edits.files.format import (
    CONFIG_FILE,
    FULL,
    HARDENED,
    TENSOR_FILE,
    locate,
    read_config,
    read_tensors,
    write_pair,
)
from headedit.edits.files.hardened import FLOATS, is_hardened, pack, unpack
from headedit.edits.gate_set import harden
from headedit.edits.handle import HeadEdits
from headedit.errors import HeadEditError
from headedit.io.strict import build
from headedit.specs import HeadSite, Spec, find_spec
from headedit.version import __version__

_LARGEST = 1e6  # of a setting of the gates, so that nothing overflows


def save(
    edits: HeadEdits,
    directory: "str | PathLike[str]",
    *,
    hardened: bool = False,
    card: bool = True,
    metrics: Mapping[str, float] | None = None,
    repo_id: str | None = None,
) -> None:
    """Writes the edits into a folder, which is made if it is not there; see ``HeadEdits.save_pretrained``.

    Args:
        edits: the handle, attached or detached; it stays as it is.
        directory: the folder.
        hardened: store only what acts, as after ``edits.harden()``; hardened edits are always stored so.
        card: write a model card, unless a README.md that is not ours stands there.
        metrics: names and values for the card.
        repo_id: the id of the hub repository that the card says to load from; by default this folder.

    Raises:
        HeadEditError: the folder cannot be made or written, or a metric is not a number.
    """
    check_metrics(metrics)
    short = hardened or is_hardened(edits.module)
    tensors = pack(edits.module) if short else _tensors(edits.module)
    config = {
        "versions": {
            "headedit": __version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
        "base_model": describe(edits.model),
        "spec": edits.spec.to_dict(),
        "spec_sha256": edits.spec.digest(),
        "config": vars(edits.config),
        "strength": 1.0 if short else edits.strength,
        "sites": [site_row(site) for site in edits.sites],
    }
    write_pair(Path(directory), config, tensors, HARDENED if short else FULL)
    if card:
        write_card(edits, directory, metrics=metrics, repo_id=repo_id)


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
        The handle; the model's logits are those of the model that was saved, bit for bit; of edits that were saved
        hardened, those of the model after ``harden()``, with gates that are fixed.

    Raises:
        HeadEditError: nothing is found, a file is damaged, or the edits were made for another model, in
            which case the message lists the differences.
    """
    check_unattached(model)
    folder = locate(path, revision)
    saved = read_config(folder)
    check_model(saved, model, folder)
    found = _spec_for(model, spec, saved, folder)
    return HeadEdits(model, found, _module_on(model, found, folder, saved))


def load_for(model: nn.Module, spec: Spec, path: "str | PathLike[str]", revision: str | None) -> Adapter:
    """Saved edits for a model that has some attached already, by themselves; see ``HeadEdits.load_adapter``."""
    folder = locate(path, revision)
    saved = read_config(folder)
    check_model(saved, model, folder)
    return _module_on(model, spec, folder, saved)


def _module_on(model: nn.Module, spec: Spec, folder: Path, saved: dict[str, Any]) -> Adapter:
    config = _config_of(saved, f"{folder / CONFIG_FILE}: config")
    tensors = read_tensors(folder, saved)
    sites = edited_sites(model, spec, config, names={row["name"] for row in saved["sites"]})
    check_sites(saved, sites, folder)
    module = Adapter(sites, config)
    _fill(module, folder, saved, tensors)
    return module


@torch.no_grad()
def restore(edits: Adapter, tensors: dict[str, Tensor], where: str) -> None:
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
        if not (tensors[name].dtype in FLOATS and torch.isfinite(tensors[name]).all()):
            raise HeadEditError(f"{where}: the tensor '{name}' holds NaN, infinity or no floating-point numbers.")
    for name, parameter in _parameters(edits).items():
        parameter.data = tensors[name].to(parameter.device)  # in the dtype it was saved in
    for edit in edits:
        edit.idle = False


def load_tensors(edits: HeadEdits, directory: "str | PathLike[str]") -> None:
    """Puts the values saved in a folder into edits that are attached already, as resuming a run does.

    Raises:
        HeadEditError: the folder holds no such edits.
    """
    folder = Path(directory)
    saved = read_config(folder)
    _fill(edits.module, folder, saved, read_tensors(folder, saved))


def read(directory: "str | PathLike[str]") -> Adapter:
    """Saved edits by themselves, without a model, for looking at.

    Raises:
        HeadEditError: the folder holds no edits, or a file is damaged.
    """
    folder = Path(directory)
    saved = read_config(folder)
    where = str(folder / CONFIG_FILE)
    config, tensors = _config_of(saved, f"{where}: config"), read_tensors(folder, saved)
    sites = [build(HeadSite, {**row, "path": row["name"], "module": nn.Identity()}, where) for row in saved["sites"]]
    module = Adapter(sites, config)
    _fill(module, folder, saved, tensors)
    return module


def _fill(module: Adapter, folder: Path, saved: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    where = str(folder / TENSOR_FILE)
    if saved["format_version"] == FULL:
        restore(module, tensors, where)
        module.strength = saved.get("strength", 1.0)
        return
    restore(module, unpack(module, tensors, where), where)
    harden(module)  # takes nothing away any more, and fixes the gates


def _config_of(saved: dict[str, Any], where: str) -> EditConfig:
    config = EditConfig.from_dict(saved["config"], where)
    for key in ("temperature", "stretch", "gate_init", "init_std"):
        value = getattr(config, key)
        if (
            max(map(abs, value if isinstance(value, tuple) else [value])) > _LARGEST
            or config.temperature < 1 / _LARGEST
        ):
            raise HeadEditError(f"{where}: {key}: found {value}, which no edits are made with.")
    return config


def _parameters(edits: Adapter) -> dict[str, nn.Parameter]:
    return {
        f"{site.name}.{name}": parameter for site, edit in edits.pairs() for name, parameter in edit.named_parameters()
    }


def _tensors(edits: Adapter) -> dict[str, Tensor]:
    return {name: p.detach().cpu().contiguous() for name, p in _parameters(edits).items()}


def _spec_for(model: nn.Module, spec: "str | PathLike[str] | Spec | None", saved: dict[str, Any], folder: Path) -> Spec:
    try:
        return find_spec(model, spec)
    except HeadEditError:
        if spec is not None:
            raise
    return build(Spec, saved["spec"], f"{folder / CONFIG_FILE}: spec")
