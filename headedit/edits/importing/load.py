"""Edits that other projects trained, put on a model: JoLA's checkpoints and LoFiT's arrays.

JoLA (arXiv 2502.01179, code ``wenlai-lavine/jola``) saves the whole model; a layer's ``self_attn`` holds ``attn_A`` and
``attn_v``, a vector per head, and the gate logits ``log_g1`` and ``log_g2``, [heads, 1]. Its attention computes

    z' = (1 + g2 · A) ⊙ z + g1 · v        g = clip(1.2 · σ(log g) − 0.1, 0, 1)

so that ``log_g1`` gates the offset v and ``log_g2`` the scale A; ``swap_gates`` is for code that has it the other way
round. Only these tensors are taken; the base weights next to them are compared with the model's, as an untied
``lm_head`` is trained along, and JoLA's Llama works with a rotary base of 10000 and no scaling, so that edits it made
for Llama 3 belong to a model that differs from the published one. What differs is a warning.

LoFiT (arXiv 2406.01563) has the same two vectors without gates, z' = (1 + A) ⊙ z + v, on the heads it chose.
"""

import logging
from collections.abc import Callable, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from headedit.edits.attach import attach
from headedit.edits.config import EditConfig
from headedit.edits.gate_set import GateIndex, freeze_gates, harden
from headedit.edits.handle import HeadEdits
from headedit.edits.importing.base_weights import compare_base
from headedit.edits.importing.checkpoints import checked, described, read_layers, read_lofit, stacked
from headedit.edits.importing.rotary import rotary_fault
from headedit.errors import HeadEditError
from headedit.specs import Spec

logger = logging.getLogger(__name__)

__all__ = ["import_jola", "import_lofit", "read_lofit"]


def import_jola(
    model: nn.Module,
    path: "str | PathLike[str]",
    *,
    spec: "str | PathLike[str] | Spec | None" = None,
    swap_gates: bool = False,
    compare: bool = True,
) -> HeadEdits:
    """Attaches the edits in a checkpoint that JoLA's code saved.

    A warning names the base weights that differ in the checkpoint, and what JoLA's Llama class computes differently.
    The model's own weights stay as they are; ``headedit import jola --with-base`` writes the base with those of the
    checkpoint.

    Args:
        model: the base model, without edits.
        path: the folder of the checkpoint, or one file: safetensors, or one of torch's, such as ``pytorch_model.bin``,
            of which nothing but tensors is read.
        spec: a spec or spec file to use; by default the registry's.
        swap_gates: ``log_g1`` gates the scale and ``log_g2`` the offset.
        compare: compare the base weights, too, which reads the whole checkpoint.

    Returns:
        The handle, with gates that can be trained on.

    Raises:
        HeadEditError: the checkpoint cannot be read, holds no JoLA edits, or does not fit the model, which stays as
            it was.
    """
    gates = ("log_g2", "log_g1") if swap_gates else ("log_g1", "log_g2")
    keys = {"offset": "attn_v", "scale": "attn_A", "offset_gate": gates[0], "scale_gate": gates[1]}
    found = read_layers(Path(path), tuple(sorted(keys.values())))

    def fill(edits: HeadEdits) -> None:
        layers = [site.layer for site in edits.sites]
        if sorted(found) != layers:
            raise HeadEditError(
                f"{path}: holds edits of the layers {_few(sorted(found))}, but those of the model are {_few(layers)}. "
                "Is it another model, or is a part of the checkpoint missing?"
            )
        for site, edit in edits.module.pairs():
            for field, key in keys.items():
                shape = (site.heads,) if field.endswith("_gate") else (site.heads, site.head_dim)
                values = stacked(found[site.layer][key], shape, f"{path}: layer {site.layer}: {key}")
                (edit.gates if field.endswith("_gate") else edit.vectors)[field].copy_(values)

    edits = _attached(model, spec, EditConfig(), fill)
    if compare:
        comparison, fault = compare_base(model, path), rotary_fault(model)
        said = [] if comparison.same else comparison.lines()
        if said or fault:
            logger.warning("%s", "\n".join([f"{path}:", *said, *([fault] if fault else [])]))
    return edits


def import_lofit(
    model: nn.Module,
    heads: "Tensor | NDArray[Any] | Sequence[Sequence[int]]",
    offsets: "Tensor | NDArray[Any]",
    scales: "Tensor | NDArray[Any] | None" = None,
    *,
    spec: "str | PathLike[str] | Spec | None" = None,
) -> HeadEdits:
    """Attaches LoFiT's edits.

    Args:
        model: the base model, without edits.
        heads: (layer, head) of each edited head, both counted from 0, [K, 2].
        offsets: its v, [K, head_dim].
        scales: its A, [K, head_dim]; None for none, as after LoFiT's second stage.
        spec: a spec or spec file to use; by default the registry's.

    Returns:
        The handle, hardened: the gates of the given heads are open for good, and all others closed.

    Raises:
        HeadEditError: shapes, heads or numbers do not fit the model, which stays as it was.
    """
    table = _tensor(heads, "heads")
    if table.dim() != 2 or table.shape[1] != 2 or table.is_floating_point() or not len(table):
        wanted = "whole numbers of shape (K, 2), a layer and a head in each row"
        raise HeadEditError(f"heads: found {described(table)}, expected {wanted}.")
    chosen = [(int(layer), int(head)) for layer, head in table.tolist()]
    twice = [pair for pair in set(chosen) if chosen.count(pair) > 1]
    if twice:
        raise HeadEditError(f"heads: head {min(twice)[1]} of layer {min(twice)[0]} is named twice.")
    vectors = {"offset": _tensor(offsets, "offsets")}
    if scales is not None:
        vectors["scale"] = _tensor(scales, "scales")

    def fill(edits: HeadEdits) -> None:
        places = {site.layer: i for i, site in enumerate(edits.sites)}
        edited = list(edits.module)
        for row, (layer, head) in enumerate(chosen):
            if layer not in places or not 0 <= head < edited[places[layer]].heads:
                raise HeadEditError(
                    f"heads[{row}]: found layer {layer}, head {head}; the model has the layers {_few(sorted(places))} "
                    f"with {max(edit.heads for edit in edited)} heads, both counted from 0."
                )
        for vector, values in vectors.items():
            width = edited[places[chosen[0][0]]].head_dim
            for (layer, head), row_values in zip(
                chosen, checked(values, (len(chosen), width), f"{vector}s"), strict=True
            ):
                edited[places[layer]].vectors[vector][head] = row_values
        opened = [GateIndex(places[layer], vector, head) for vector in vectors for layer, head in chosen]
        freeze_gates(edits.module, opened)
        harden(edits.module)

    return _attached(model, spec, EditConfig(vectors="both" if scales is not None else "offset"), fill)


def _attached(
    model: nn.Module,
    spec: "str | PathLike[str] | Spec | None",
    config: EditConfig,
    fill: Callable[[HeadEdits], None],
) -> HeadEdits:
    """Attaches and fills edits; where that fails the model is as it was."""
    edits = attach(model, spec, config)
    try:
        _check_sites(edits)
        with torch.no_grad():
            fill(edits)
    except BaseException:
        edits.detach()
        raise
    return edits


def _check_sites(edits: HeadEdits) -> None:
    layers = [site.layer for site in edits.sites]
    if len(set(layers)) < len(layers) or len({site.head_dim for site in edits.sites}) > 1:
        raise HeadEditError(
            f"This {type(edits.model).__name__} has several sites per layer or heads of several widths, which JoLA and "
            "LoFiT do not have."
        )


def _tensor(values: Any, name: str) -> Tensor:
    try:
        return torch.as_tensor(values)
    except (TypeError, ValueError, RuntimeError) as error:
        raise HeadEditError(f"{name}: is not an array of numbers ({error}).") from None


def _few(numbers: list[int]) -> str:
    contiguous = numbers == list(range(numbers[0], numbers[-1] + 1))
    return f"{numbers[0]} to {numbers[-1]}" if contiguous else ", ".join(map(str, numbers[:20]))
