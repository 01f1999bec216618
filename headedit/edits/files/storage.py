"""Edits on disk: an adapter saved into a folder, and read from one, on a model or alone; see ``format`` for the files.

A folder that a model's own ``save_pretrained`` or a Trainer wrote with edits attached is read as well.
"""

import logging
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple
from warnings import warn

import torch
from torch import Tensor, nn

from headedit.edits.adapter import Adapter
from headedit.edits.adapter_set import AdapterSet
from headedit.edits.config import EditConfig
from headedit.edits.edited_sites import edited_sites
from headedit.edits.files.card import check_metrics, write_card
from headedit.edits.files.card_metadata import check_fields
from headedit.edits.files.compatibility import check_model, check_sites
from headedit.edits.files.format import FULL, HARDENED, TENSOR_FILE, holds_edits, locate, read_pair, write_pair
from headedit.edits.files.hardened import FLOATS, is_hardened, pack, unpack
from headedit.edits.files.model_weights import read_from_weights
from headedit.edits.files.record import adapter_record, base_record, read_config, recorded_date
from headedit.edits.files.state import set_frozen_gates
from headedit.edits.files.values import parameters_of, tensors_of
from headedit.edits.gate_set import harden
from headedit.edits.positions import IN_WORDS
from headedit.edits.summands import check_same_positions
from headedit.errors import HeadEditError
from headedit.io.strict import build
from headedit.specs import HeadSite, Spec, find_spec

logger = logging.getLogger(__name__)


class _Saved(NamedTuple):
    """An adapter as it was read.

    Fields:
        config: the shape of the edits.
        tensors: by name, in the form that the record's format_version names.
        record: of the model, spec, sites and strength.
        where: the place of the record, for messages.
        tensors_at: the place of the tensors, for messages.
        idle: the indices of sites that are skipped.
        frozen_gates: whether the gates alone are frozen; None where that is not recorded.
    """

    config: EditConfig
    tensors: dict[str, Tensor]
    record: dict[str, Any]
    where: str
    tensors_at: str
    idle: list[int]
    frozen_gates: bool | None


def save(
    edits: AdapterSet,
    directory: "str | PathLike[str]",
    *,
    hardened: bool = False,
    card: bool | Mapping[str, Any] = True,
    metrics: Mapping[str, float] | None = None,
    repo_id: str | None = None,
) -> None:
    """Writes the active adapter into a folder, which is made if it does not exist; see ``HeadEdits.save_pretrained``.

    Args:
        edits: the adapter set, attached or detached; it does not change.
        directory: the folder.
        hardened: store only the open heads with their effective values, as after ``edits.harden()``; hardened edits
            are always stored so.
        card: write a model card, unless the folder has a README.md that headedit did not write; or fields of its front
            matter, such as ``license`` and ``datasets``.
        metrics: names and values for the card.
        repo_id: the id of the hub repository that the card says to load from; by default this folder.

    Raises:
        HeadEditError: a vector or gate is NaN, infinite or not whole in this process, the folder cannot be made or
            written, a metric is not a number, or a field is not one of a card; nothing on disk has changed then, unless
            the card alone cannot be written.
    """
    check_metrics(metrics)
    fields = {} if isinstance(card, bool) else card
    check_fields(fields)
    adapter = edits.module
    for edit in adapter:
        edit.check_whole()
    short = hardened or is_hardened(adapter)
    tensors = pack(adapter) if short else tensors_of(adapter)
    config = {**base_record(edits.model, edits.spec), "spec_sha256": edits.spec.digest(), **adapter_record(adapter)}
    if short:
        config["strength"] = 1.0  # is part of the values
    write_pair(Path(directory), config, tensors, HARDENED if short else FULL)
    if card is not False:
        write_card(edits, directory, metrics=metrics, repo_id=repo_id, fields=fields)


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
        path: a folder that ``save_pretrained`` of the edits, or of the model with them, wrote, or the id of a
            repository on the Hugging Face hub.
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
    saved = _read(folder)
    check_model(saved.record, model, folder)
    found = _spec_for(model, spec, saved)
    sites = edited_sites(model, found, saved.config, names={row["name"] for row in saved.record["sites"]})
    check_sites(saved.record, sites, folder)
    adapter = Adapter(sites, saved.config)
    _fill(adapter, saved)
    if saved.config.positions != "all":
        logger.warning("%s: these edits act on %s alone.", folder, IN_WORDS[saved.config.positions])
    return found, adapter


@torch.no_grad()
def put_tensors(adapter: Adapter, tensors: dict[str, Tensor], where: str) -> None:
    """Copies saved tensors into an adapter of the same shape.

    Raises:
        HeadEditError: names, shapes or values do not fit; nothing is copied then.
    """
    expected = parameters_of(adapter)
    for name in sorted(expected.keys() | tensors.keys()):
        if name not in tensors or name not in expected:
            raise HeadEditError(f"{where}: the tensor '{name}' is {'missing' if name in expected else 'not known'}.")
        if tensors[name].shape != expected[name].shape:
            found, wanted = tuple(tensors[name].shape), tuple(expected[name].shape)
            raise HeadEditError(f"{where}: the tensor '{name}' has shape {found}, expected {wanted}.")
        if not (tensors[name].dtype in FLOATS and torch.isfinite(tensors[name]).all()):
            raise HeadEditError(f"{where}: the tensor '{name}' holds NaN, infinity or no floating-point numbers.")
    for name, parameter in expected.items():
        parameter.data = tensors[name].to(parameter.device)  # in the dtype it was saved in
    for edit in adapter:
        edit.idle = False


def load_tensors(edits: AdapterSet, directory: "str | PathLike[str]") -> None:
    """Copies the values saved in a folder into the active adapter, as resuming a run does.

    Raises:
        HeadEditError: the folder holds no such edits, or edits that act on other tokens.
    """
    saved = _read(Path(directory))
    check_same_positions(edits.module.config.positions, saved.config.positions)
    _fill(edits.module, saved)


def read(directory: "str | PathLike[str]") -> Adapter:
    """Saved edits without a model, to look at.

    Raises:
        HeadEditError: the folder holds no edits, or a file is damaged.
    """
    saved = _read(Path(directory))
    rows = saved.record["sites"]
    sites = [build(HeadSite, {**row, "path": row["name"], "module": nn.Identity()}, saved.where) for row in rows]
    adapter = Adapter(sites, saved.config)
    _fill(adapter, saved)
    return adapter


def read_record(directory: "str | PathLike[str]") -> dict[str, Any]:
    """What is recorded with the edits in a folder: base model, spec, config, strength, sites, versions.

    Raises:
        HeadEditError: the folder holds no edits, or a file is damaged.
    """
    return _read(Path(directory)).record


def _read(folder: Path) -> _Saved:
    """The edits in a folder, or those in the weights of a model in it."""
    inside = None if holds_edits(folder) else read_from_weights(folder)
    if inside is None:
        saved, tensors, where = read_pair(folder)
        config = read_config(saved, where)
        return _Saved(config, tensors, saved, where, str(folder / TENSOR_FILE), [], None)
    record, of_adapters, where = inside
    if record["merged"]:
        raise HeadEditError(
            f"{where}: this model was saved while {', '.join(record['merged'])} was merged into its weights, so that "
            "the edits would act twice. Use the model as it is, without them; or save it after unmerge_adapter()."
        )
    active, others = record["active"], [name for name in record["adapters"] if name != record["active"]]
    if others:
        warn(
            f"{where}: holds the adapters {', '.join(record['adapters'])}; '{active}', the active one, is read. To "
            "have all, attach edits to the model and give its load_state_dict the state dict of this model.",
            stacklevel=3,
        )
    part = record["adapters"][active]
    saved = {**record, **part, "config": dict(vars(part["config"])), "format_version": FULL}
    return _Saved(part["config"], of_adapters[active], saved, where, where, part["idle"], part["frozen_gates"])


def _fill(adapter: Adapter, saved: _Saved) -> None:
    adapter.date = recorded_date(saved.record, saved.where)
    if saved.record["format_version"] == FULL:
        put_tensors(adapter, saved.tensors, saved.tensors_at)
        adapter.strength = saved.record.get("strength", 1.0)
        set_frozen_gates(adapter, saved.frozen_gates)
        for i in saved.idle:
            adapter.site_edits[i].idle = True  # type: ignore[assignment]
        return
    put_tensors(adapter, unpack(adapter, saved.tensors, saved.tensors_at), saved.tensors_at)
    harden(adapter)  # changes no value any more, and freezes the gates


def _spec_for(model: nn.Module, spec: "str | PathLike[str] | Spec | None", saved: _Saved) -> Spec:
    """The spec that is given, or the registry's, or else the one saved with the edits."""
    try:
        return find_spec(model, spec)
    except HeadEditError:
        if spec is not None:
            raise
    return build(Spec, saved.record["spec"], f"{saved.where}: spec")
