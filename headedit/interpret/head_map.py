"""The data that a picture of edits is drawn from: the parameters of a handle or a folder, and the kinds of layers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Any

import torch
from torch import Tensor

from headedit.edits import HeadEdits
from headedit.edits.adapter import Adapter
from headedit.edits.files.storage import read, read_record
from headedit.edits.site_edit import SiteEdit
from headedit.errors import HeadEditError
from headedit.hf.config import read_config, text_config
from headedit.specs import HeadSite, find_sites

Edits = HeadEdits | Adapter | str | PathLike[str]
"""A handle, attached or detached; its parameters alone; or a folder of saved edits."""

NOT_EDITED = "not edited"
_KEY_VALUE = ("num_key_value_heads", "num_kv_heads", "n_head_kv", "multi_query_group_num")
_MIXERS = ("attention", "linear")


@dataclass(frozen=True)
class HeadMap:
    """Edits to draw.

    Fields:
        module: their parameters.
        layer_kinds: of every layer in the stack, such as ``full``, ``sliding``, ``linear`` or ``none``; by the
            config's ``layer_types``, or else by the sites that the model has there. For saved edits and bare
            parameters, layers without an edit are ``not edited``.
        key_value_heads: number of key-value heads by layer, of the layers whose attention heads share them.
    """

    module: Adapter
    layer_kinds: list[str]
    key_value_heads: dict[int, int]

    @staticmethod
    def of(edits: Edits) -> "HeadMap":
        """Reads a handle, parameters or a folder.

        Raises:
            HeadEditError: the folder contains no edits, a file is damaged, or the argument is none of the three.
        """
        if isinstance(edits, HeadEdits):
            config = text_config(edits.model)
            return HeadMap(edits.module, _layer_kinds(edits, config), _groups(edits.module, config))
        if isinstance(edits, Adapter):
            return HeadMap(edits, _kinds_of_sites(edits.sites, NOT_EDITED), {})
        if isinstance(edits, str | PathLike):
            module = read(edits)
            base = read_record(edits)["base_model"]
            return HeadMap(module, _kinds_of_sites(module.sites, NOT_EDITED), _groups(module, base))
        raise HeadEditError(
            f"Cannot draw a {type(edits).__name__}; give the handle that headedit.attach or headedit.load returned, or "
            "the folder of saved edits."
        )

    def shown_kinds(self, kind: str | None) -> list[str]:
        """The kinds of site to show: the one asked for, or all that are edited.

        Raises:
            HeadEditError: the edits have no site of the kind.
        """
        if kind is None:
            return self.module.kinds()
        self.module.gates(kind)  # raises an error that names the kinds
        return [kind]

    def grid(self, kind: str, value: Callable[[SiteEdit], Tensor | None]) -> Tensor:
        """A value for every head of a kind, [layers, heads]: rows and columns as in ``HeadEdits.gates``.

        Args:
            kind: the kind of site.
            value: returns a value for every head of a site, [heads], or None for a site that has none.
        """
        placed = list(self.module.columns(kind))
        result = torch.full((len(self.layer_kinds), max(first + site.heads for site, _, first in placed)), torch.nan)
        for site, edit, first in placed:
            found = value(edit)
            if found is not None:
                result[site.layer, first : first + site.heads] = found.detach().float().cpu()
        return result

    def has_head(self, kind: str) -> Tensor:
        """Whether there is an edited head, [layers, heads], bool."""
        return ~self.grid(kind, lambda edit: torch.ones(edit.heads)).isnan()

    def open_heads(self, kind: str, vector: str | None = None) -> Tensor:
        """Which heads have an open gate on a vector, by default on either, [layers, heads], bool; False where none is.

        Open is as in ``HeadEdits.count_open``.
        """

        def opened(edit: SiteEdit) -> Tensor | None:
            wanted = [name for name in edit.vectors if vector in (None, name)]
            return torch.stack([edit.is_open(name) for name in wanted]).any(0) if wanted else None

        return self.grid(kind, opened).nan_to_num() > 0

    def group_size(self, kind: str) -> int | None:
        """How many neighbouring heads share a key-value head, if that is known and the same in every layer."""
        if kind != "attention":
            return None
        heads = self.has_head(kind).sum(1).tolist()
        sizes = {heads[layer] // number for layer, number in self.key_value_heads.items()}
        unknown = any(count and layer not in self.key_value_heads for layer, count in enumerate(heads))
        return sizes.pop() if len(sizes) == 1 and not unknown and sizes != {1} else None


def _groups(module: Adapter, config: Any) -> dict[int, int]:
    """Key-value heads by layer, if the config has a number that divides the heads of the layer's only site."""
    found = {}
    attention = [site for site in module.sites if site.kind == "attention"]
    layers = [site.layer for site in attention]
    for site in attention:
        values = (read_config(config, key, site.layer) for key in _KEY_VALUE)
        number = next((value for value in values if isinstance(value, int) and value > 0), None)
        if read_config(config, "multi_query", 0) and not read_config(config, "new_decoder_architecture", 0):
            number = 1  # in Falcon and GPT-BigCode, whatever the number of key-value heads
        if number is not None and site.heads % number == 0 and layers.count(site.layer) == 1:
            found[site.layer] = number
    return found


def _layer_kinds(edits: HeadEdits, config: Any) -> list[str]:
    layers = max(site.layers for site in edits.sites)
    types = read_config(config, "layer_types", 0, spread=False)
    if isinstance(types, list | tuple) and len(types) >= layers:
        return [str(kind).removesuffix("_attention") for kind in types[:layers]]
    mixers = [kind for kind in edits.spec.kinds() if kind in _MIXERS]
    sites = find_sites(edits.model, edits.spec, mixers) if mixers else edits.sites
    return _kinds_of_sites(sites, "none", layers)


def _kinds_of_sites(sites: Sequence[HeadSite], without: str, layers: int = 0) -> list[str]:
    there: dict[int, set[str]] = {}
    for site in sites:
        there.setdefault(site.layer, set()).add(site.kind)
    count = max([layers, *(site.layers for site in sites)])
    return [" + ".join(sorted(there[layer])) if layer in there else without for layer in range(count)]
