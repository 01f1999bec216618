"""How far the base weights in another project's checkpoint are from those of a base model.

JoLA's code saves the whole model, and ``unfreeze_jola_params`` leaves an untied ``lm_head`` trainable; other code
trains norms, biases or embeddings next to the edits. Edits were learned together with such weights.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from headedit.edits.importing.checkpoints import each_tensor, is_edit
from headedit.specs import MODULE_NAME

_BUFFERS = (".inv_freq", ".cos_cached", ".sin_cached", ".masked_bias")
"""Ends of the names of constants that old versions of transformers saved."""

_LISTED = 12
"""The most names in a list, and the most lines for a kind of weight, whose names differ in the layer alone."""


@dataclass(frozen=True)
class MovedWeight:
    """A base weight that is another one in the checkpoint.

    Fields:
        name: its name in the base model.
        distance: the norm of the difference, over the rows that both have.
        norm: the norm of the base's weight, over the same rows.
        largest: the largest absolute difference of a number.
        shape: its shape in the checkpoint.
        base_shape: its shape in the base model.
    """

    name: str
    distance: float
    norm: float
    largest: float
    shape: tuple[int, ...]
    base_shape: tuple[int, ...]

    @property
    def resized(self) -> bool:
        """Whether the vocabulary is larger or smaller, so that there are more or fewer rows."""
        return self.shape != self.base_shape and self.shape[1:] == self.base_shape[1:]

    @property
    def reshaped(self) -> bool:
        """Whether the two have nothing to do with each other."""
        return self.shape != self.base_shape and not self.resized

    def __str__(self) -> str:
        if self.reshaped:
            return f"has the shape {self.shape}, and the base's has {self.base_shape}"
        share = f" {self.distance / self.norm:.2%}" if self.norm else ""
        parts = []
        if self.distance:
            norms = f"‖ΔW‖ {self.distance:.3g} of ‖W‖ {self.norm:.3g}"
            parts.append(f"moved by{share}: {norms}, the largest change {self.largest:.3g}")
        if self.resized:
            rows = self.shape[0] - self.base_shape[0]
            parts.append(f"has {abs(rows)} row{'s' * (abs(rows) > 1)} {'more' if rows > 0 else 'fewer'}")
        return "; ".join(parts)


@dataclass(frozen=True)
class BaseComparison:
    """How the base weights in a checkpoint compare with those of a base model.

    Fields:
        compared: how many were compared.
        rounded: how many are the base's, rounded to a shorter dtype.
        moved: those that differ by more.
        missing: names of weights of the base that the checkpoint lacks.
        unknown: names of tensors in the checkpoint that are neither edits nor weights of the base.
        unread: names of weights that cannot be compared, as those of a quantized model.
        untied: whether the output head is tied to the embedding in the base and another matrix in the checkpoint.
    """

    compared: int
    rounded: int
    moved: tuple[MovedWeight, ...] = ()
    missing: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()
    unread: tuple[str, ...] = ()
    untied: bool = False

    @property
    def same(self) -> bool:
        """Whether the edits were trained on this base, as far as its weights say."""
        return not (self.moved or self.missing or self.unknown or self.unread)

    def lines(self) -> list[str]:
        """The comparison in words: a line for each weight that moved, or for those of a kind where they are many."""
        count = len(self.moved)
        as_base = self.compared - count
        lead = f"base weights: {self.compared} compared, {as_base} as in the base"
        lead += f" ({self.rounded} of them rounded to another dtype)" if self.rounded else ""
        lines = [f"{lead}, {count} different" if count else lead]
        kinds: dict[str, list[MovedWeight]] = {}
        for weight in self.moved:
            kinds.setdefault(re.sub(r"(?<=\.)\d+(?=\.)", "*", weight.name), []).append(weight)
        for kind, weights in kinds.items():
            most = max(weights, key=lambda w: (w.reshaped, w.distance / (w.norm or 1.0)))
            if len(weights) <= _LISTED:
                lines += [f"  {weight.name} {weight}" for weight in weights]
            else:
                lines.append(f"  {kind}: {len(weights)} tensors; the most changed, {most.name}, {most}")
        if self.untied:
            lines.append("  The output head is tied to the embedding in the base, and a matrix of its own here.")
        for names, what in (
            (self.missing, "of the base are not in the checkpoint"),
            (self.unknown, "of the checkpoint are neither edits nor weights of the base, and are not imported"),
            (self.unread, "of the base are quantized or not loaded, and were not compared"),
        ):
            if names:
                shown = ", ".join(names[:_LISTED]) + (", …" if len(names) > _LISTED else "")
                lines.append(f"  {len(names)} {what}: {shown}")
        if self.moved:
            lines.append(self._meaning())
        return lines

    def _meaning(self) -> str:
        if all(weight.resized and not weight.distance for weight in self.moved):
            added = all(weight.shape[0] > weight.base_shape[0] for weight in self.moved)
            what = "Only rows of new tokens, such as [PAD], were added" if added else "Only the number of rows differs"
            return f"{what}: the edits act on the base as they were trained to."
        if len(self.moved) > self.compared / 2:
            return (
                "Most weights differ: is this the base that the edits were trained on? Edits act as they were trained "
                "to on their own base alone."
            )
        heads = all(weight.name.endswith(("lm_head.weight", "embed_out.weight")) for weight in self.moved)
        lead = "JoLA's released code trains an untied lm_head along. " if heads else ""
        return f"{lead}The edits were learned together with these weights, and act differently on the plain base."


@dataclass
class _Base:
    """The weights of a base model by name, and how names in a checkpoint are found among them."""

    weights: dict[str, Tensor]
    prefix: str
    found: set[str] = field(default_factory=set)

    def name_of(self, name: str) -> str | None:
        """The name in the base of a tensor in the checkpoint, which may have a wrapper's prefix or lack the model's."""
        parts = name.split(".")
        names = [".".join(parts[i:]) for i in range(len(parts) - 1)]
        return next((found for found in (*names, f"{self.prefix}.{name}") if found in self.weights), None)

    def missing(self) -> list[str]:
        """Names of weights that were not found under any of their names."""
        places = {_place(self.weights[name]) for name in self.found}
        return [name for name, weight in self.weights.items() if _place(weight) not in places]


def base_of(model: nn.Module) -> _Base:
    """The base weights of a model, without edits on it."""
    state = model.state_dict()
    weights = {name: t for name, t in state.items() if isinstance(t, Tensor) and MODULE_NAME not in name.split(".")}
    return _Base(weights, getattr(model, "base_model_prefix", "") or "model")


def base_tensors(base: _Base, path: Path) -> Iterator[tuple[str | None, str, Tensor]]:
    """The tensors of a checkpoint that are no edits: the name in the base, or None; the name there; the tensor."""
    for name, tensor in each_tensor(path, lambda name: not is_edit(name) and not name.endswith(_BUFFERS)):
        yield base.name_of(name), name, tensor


@torch.no_grad()
def compare_base(model: nn.Module, path: "str | PathLike[str]") -> BaseComparison:
    """Compares the base weights in a checkpoint with those of a model, tensor by tensor.

    A weight that is the base's rounded to another dtype counts as the same. Of embeddings with more or fewer rows those
    that both have are compared.

    Args:
        model: the base model, with edits or without.
        path: the folder of the checkpoint, or one file, as for ``import_jola``.

    Raises:
        HeadEditError: a file cannot be read.
    """
    base = base_of(model)
    moved: dict[str, MovedWeight] = {}
    unknown, unread, rounded = [], [], 0
    for name, own, tensor in base_tensors(base, Path(path)):
        if name is None:
            unknown.append(own)
            continue
        base.found.add(name)
        weight = base.weights[name]
        if not weight.is_floating_point() or weight.is_meta or not tensor.is_floating_point():
            unread.append(name)
            continue
        difference = _difference(name, tensor, weight.detach().to("cpu"))
        if isinstance(difference, MovedWeight):
            moved[name] = difference
        else:
            rounded += difference
    head = _tied_head(model)
    pair = [moved.get(name) for name in head]
    both = len(head) == 2 and set(head) <= base.found
    untied = both and _figures(pair[0]) != _figures(pair[1])
    if both and not untied:
        moved.pop(head[0], None)  # the same matrix under its other name
    return BaseComparison(
        compared=len(base.found) - len(unread) - (both and not untied),
        rounded=rounded,
        moved=tuple(moved.values()),
        missing=tuple(base.missing()),
        unknown=tuple(unknown),
        unread=tuple(unread),
        untied=untied,
    )


def _difference(name: str, found: Tensor, base: Tensor) -> "MovedWeight | bool":
    """How far a weight moved; of one that did not, whether it was rounded."""
    shapes = tuple(found.shape), tuple(base.shape)
    if found.dim() != base.dim() or found.shape[1:] != base.shape[1:]:
        return MovedWeight(name, 0.0, 0.0, 0.0, *shapes)
    rows = min(found.shape[0], base.shape[0]) if found.dim() else None
    same_size = shapes[0] == shapes[1]
    found, base = found[:rows], base[:rows]
    exact = torch.equal(found.to(base.dtype), base) and torch.equal(found, base.to(found.dtype))
    if same_size and (exact or _is_rounded(found, base)):
        return not exact
    wide = torch.promote_types(torch.float32, torch.promote_types(found.dtype, base.dtype))
    difference = found.to(wide) - base.to(found.dtype).to(wide)
    largest = float(difference.abs().max()) if difference.numel() else 0.0
    return MovedWeight(name, float(difference.norm()), float(base.to(wide).norm()), largest, *shapes)


def _is_rounded(found: Tensor, base: Tensor) -> bool:
    """Whether a weight is the base's, rounded once to a shorter dtype."""
    kinds = {found.dtype, torch.bfloat16, torch.float16}
    return any(torch.equal(found, base.to(kind).to(found.dtype)) for kind in kinds)


def _tied_head(model: nn.Module) -> list[str]:
    """The names of the output head and of the embedding where they are one matrix; empty elsewhere."""
    get = (getattr(model, "get_output_embeddings", None), getattr(model, "get_input_embeddings", None))
    try:
        tables = [getter() for getter in get if callable(getter)]
    except NotImplementedError:
        return []
    weights: list[Any] = [getattr(table, "weight", None) for table in tables]
    if len(weights) != 2 or weights[0] is None or weights[0] is not weights[1]:
        return []
    paths = {module: path for path, module in model.named_modules() if module in tables}
    return [f"{paths[table]}.weight" for table in tables] if len(paths) == 2 else []


def _figures(weight: MovedWeight | None) -> tuple[float, ...]:
    return () if weight is None else (weight.distance, weight.largest, *weight.shape)


def _place(weight: Tensor) -> tuple[object, ...]:
    """What two names of one weight have in common."""
    return (weight.data_ptr(), weight.shape) if not weight.is_meta and weight.numel() else (id(weight),)
