"""Edits on disk: ``headedit_config.json`` describes them and their model, ``headedit.safetensors`` holds them.

The config names the base model and its shape, the spec and its hash, the versions and every site; the format is
described in ``headedit.edits.files.format``.
"""

from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from headedit.edits.adapter import Adapter, edited_sites
from headedit.edits.adapter_set import AdapterSet
from headedit.edits.config import EditConfig
from headedit.edits.files.card import check_metrics, write_card
from headedit.edits.files.compatibility import check_model, check_sites, describe, site_row
from headedit.edits.files.format import (
    CONFIG_FILE,
    FULL,
    HARDENED,
    TENSOR_FILE,
    locate,
    read_edits_config,
    read_tensors,
    write_pair,
)
from headedit.edits.files.hardened import FLOATS, is_hardened, pack, unpack
from headedit.edits.gate_set import harden
from headedit.errors import HeadEditError
from headedit.io.strict import build
from headedit.specs import HeadSite, Spec, find_spec
from headedit.version import __version__

_LARGEST = 1e6  # of a setting of the gates, so that nothing overflows


def save(
    edits: AdapterSet,
    directory: "str | PathLike[str]",
    *,
    hardened: bool = False,
    card: bool = True,
    metrics: Mapping[str, float] | None = None,
    repo_id: str | None = None,
) -> None:
    """Writes the active adapter into a folder, which is made if it does not exist; see ``HeadEdits.save_pretrained``.

    Args:
        edits: the adapter set, attached or detached; it does not change.
        directory: the folder.
        hardened: store only the open heads with their effective values, as after ``edits.harden()``; hardened edits
            are always stored so.
        card: write a model card, unless the folder has a README.md that headedit did not write.
        metrics: names and values for the card.
        repo_id: the id of the hub repository that the card says to load from; by default this folder.

    Raises:
        HeadEditError: the folder cannot be made or written, or a metric is not a number.
    """
    check_metrics(metrics)
    adapter = edits.module
    short = hardened or is_hardened(adapter)
    tensors = pack(adapter) if short else _tensors(adapter)
    config = {
        "versions": {
            "headedit": __version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
        "base_model": describe(edits.model),
        "spec": edits.spec.to_dict(),
        "spec_sha256": edits.spec.digest(),
        "config": vars(adapter.config),
        "strength": 1.0 if short else adapter.strength,
        "sites": [site_row(site) for site in adapter.sites],
    }
    write_pair(Path(directory), config, tensors, HARDENED if short else FULL)
    if card:
        write_card(edits, directory, metrics=metrics, repo_id=repo_id)


def read_adapter(
    model: nn.Module,
    spec: "str | PathLike[str] | Spec | None",
    path: "str | PathLike[str]",
    revision: str | None,
) -> Adapter:
    """Saved edits for a model, not yet attached to it.

    Args:
        model: the model, with or without edits attached.
        spec: a spec or spec file to use; by default the registry's, or else the one saved with the edits.
        path: a folder that ``save_pretrained`` wrote, or the id of a repository on the Hugging Face hub.
        revision: the revision of a hub repository.

    Raises:
        HeadEditError: nothing is found, a file is damaged, or the edits were made for another model, in which case the
            message lists the differences.
    """
    return read_with_spec(model, spec, path, revision)[1]


def read_with_spec(
    model: nn.Module,
    spec: "str | PathLike[str] | Spec | None",
    path: "str | PathLike[str]",
    revision: str | None,
) -> tuple[Spec, Adapter]:
    """Saved edits for a model, and the spec that says where its heads are; see ``read_adapter``."""
    folder = locate(path, revision)
    saved = read_edits_config(folder)
    check_model(saved, model, folder)
    found = _spec_for(model, spec, saved, folder)
    config = _config_of(saved, f"{folder / CONFIG_FILE}: config")
    tensors = read_tensors(folder, saved)
    sites = edited_sites(model, found, config, names={row["name"] for row in saved["sites"]})
    check_sites(saved, sites, folder)
    adapter = Adapter(sites, config)
    _fill(adapter, folder, saved, tensors)
    return found, adapter


@torch.no_grad()
def put_tensors(adapter: Adapter, tensors: dict[str, Tensor], where: str) -> None:
    """Copies saved tensors into an adapter of the same shape.

    Raises:
        HeadEditError: names, shapes or values do not fit; nothing is copied then.
    """
    expected = _tensors(adapter)
    for name in sorted(expected.keys() | tensors.keys()):
        if name not in tensors or name not in expected:
            raise HeadEditError(f"{where}: the tensor '{name}' is {'missing' if name in expected else 'not known'}.")
        if tensors[name].shape != expected[name].shape:
            found, wanted = tuple(tensors[name].shape), tuple(expected[name].shape)
            raise HeadEditError(f"{where}: the tensor '{name}' has shape {found}, expected {wanted}.")
        if not (tensors[name].dtype in FLOATS and torch.isfinite(tensors[name]).all()):
            raise HeadEditError(f"{where}: the tensor '{name}' holds NaN, infinity or no floating-point numbers.")
    for name, parameter in _parameters(adapter).items():
        parameter.data = tensors[name].to(parameter.device)  # in the dtype it was saved in
    for edit in adapter:
        edit.idle = False


def load_tensors(edits: AdapterSet, directory: "str | PathLike[str]") -> None:
    """Copies the values saved in a folder into the active adapter, as resuming a run does.

    Raises:
        HeadEditError: the folder holds no such edits.
    """
    folder = Path(directory)
    saved = read_edits_config(folder)
    _fill(edits.module, folder, saved, read_tensors(folder, saved))


def read(directory: "str | PathLike[str]") -> Adapter:
    """Saved edits without a model, to look at.

    Raises:
        HeadEditError: the folder holds no edits, or a file is damaged.
    """
    folder = Path(directory)
    saved = read_edits_config(folder)
    where = str(folder / CONFIG_FILE)
    config, tensors = _config_of(saved, f"{where}: config"), read_tensors(folder, saved)
    sites = [build(HeadSite, {**row, "path": row["name"], "module": nn.Identity()}, where) for row in saved["sites"]]
    adapter = Adapter(sites, config)
    _fill(adapter, folder, saved, tensors)
    return adapter


def _fill(adapter: Adapter, folder: Path, saved: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    where = str(folder / TENSOR_FILE)
    if saved["format_version"] == FULL:
        put_tensors(adapter, tensors, where)
        adapter.strength = saved.get("strength", 1.0)
        return
    put_tensors(adapter, unpack(adapter, tensors, where), where)
    harden(adapter)  # changes no value any more, and freezes the gates


def _config_of(saved: dict[str, Any], where: str) -> EditConfig:
    config = EditConfig.from_dict(saved["config"], where)
    for key in ("temperature", "stretch", "gate_init", "init_std"):
        value = getattr(config, key)
        if (
            max(map(abs, value if isinstance(value, tuple) else [value])) > _LARGEST
            or config.temperature < 1 / _LARGEST
        ):
            raise HeadEditError(f"{where}: {key}: found {value}, which no edits can have.")
    return config


def _parameters(adapter: Adapter) -> dict[str, nn.Parameter]:
    return {
        f"{site.name}.{name}": parameter
        for site, edit in adapter.pairs()
        for parameters in (edit.vectors, edit.gates)
        for name, parameter in parameters.items()
    }


def _tensors(adapter: Adapter) -> dict[str, Tensor]:
    return {name: p.detach().cpu().contiguous() for name, p in _parameters(adapter).items()}


def _spec_for(model: nn.Module, spec: "str | PathLike[str] | Spec | None", saved: dict[str, Any], folder: Path) -> Spec:
    """The spec that is given, or the registry's, or else the one saved with the edits."""
    try:
        return find_spec(model, spec)
    except HeadEditError:
        if spec is not None:
            raise
    return build(Spec, saved["spec"], f"{folder / CONFIG_FILE}: spec")
