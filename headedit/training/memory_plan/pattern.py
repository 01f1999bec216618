"""Layers that are alike: two short models show how many bytes one more layer takes."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from headedit.edits import EditConfig
from headedit.hf.config import text_config
from headedit.training.memory_plan.skeleton import Skeleton

_COUNTS = ("decoder_layers", "num_decoder_layers", "num_hidden_layers")
"""Config keys that count the layers of the text decoder; where there is an encoder, it is not counted."""

_ROUNDS = 3  # periods that are kept: nothing before the first edit has a gradient, and its memory may be freed late


@dataclass(frozen=True)
class Pattern:
    """Layers ``start`` to the end repeat with a period; ``layers`` in all."""

    start: int
    period: int
    layers: int

    @property
    def remainder(self) -> int:
        """Layers at the end that do not fill a period."""
        return (self.layers - self.start) % self.period

    @property
    def short(self) -> int:
        """Layers of the short model, which lacks a whole number of periods."""
        return self.start + self.remainder + _ROUNDS * self.period

    @property
    def representative(self) -> int:
        """The first layer of the short model that represents the missing ones."""
        return self.start + (_ROUNDS - 1) * self.period

    @property
    def missing(self) -> int:
        """Periods that the short model lacks."""
        return (self.layers - self.short) // self.period


def find_pattern(skeleton: Skeleton, config: Any) -> Pattern | None:
    """The pattern of a model's layers that needs the fewest of them; None where every layer is needed."""
    kinds = layer_kinds(skeleton, config)
    best = None
    for period in range(1, len(kinds) // (_ROUNDS + 2) + 1):
        start = len(kinds) - period
        while start > 0 and kinds[start - 1] == kinds[start - 1 + period]:
            start -= 1
        found = Pattern(start, period, len(kinds))
        if found.missing > 1 and (best is None or found.short < best.short):
            best = found
    return best


def layer_kinds(skeleton: Skeleton, config: Any) -> list[object]:
    """A description of each layer, equal for layers that are alike."""
    edited = {site.module for site in skeleton.edits.sites}
    lists = _by_layer(text_config(config), len(skeleton.layers))
    return [_kind(layer, edited, [v[i] for v in lists.values()]) for i, layer in enumerate(skeleton.layers)]


def _kind(layer: nn.Module, edited: set[nn.Module], of_config: list[object]) -> object:
    parts = []
    for name, module in layer.named_modules():
        tensors = [(n, tuple(p.shape), p.dtype) for n, p in module.named_parameters(recurse=False)]
        values = {k: v for k, v in vars(module).items() if isinstance(v, str | bool | float) or _is_size(k, v)}
        parts.append((name, type(module), module in edited, tensors, values))
    return parts, of_config


def _is_size(name: str, value: object) -> bool:
    return isinstance(value, int) and name not in ("layer_idx", "layer_id", "layer_number", "layer_index")


def _by_layer(config: Any, layers: int) -> dict[str, Sequence[Any]]:
    return {k: v for k, v in vars(config).items() if isinstance(v, list | tuple) and len(v) == layers}


def shortened(config: Any, layers: int, total: int) -> Any | None:
    """The config of the same model with the first ``layers`` of ``total`` layers; None where no key counts them."""
    short = copy.deepcopy(config)
    text = text_config(short)
    key = next((key for key in _COUNTS if getattr(text, key, None) == total), None)
    if key is None:
        return None
    for name, values in _by_layer(text, total).items():
        setattr(text, name, values[:layers])
    setattr(text, key, layers)
    return short


def edits_of_first(edits: EditConfig, skeleton: Skeleton, layers: int) -> EditConfig:
    """The edits of the first ``layers`` layers."""
    return replace(edits, layers=sorted({site.layer for site in skeleton.edits.sites if site.layer < layers}))
