"""Several adapters on one model by name, with PEFT's method names."""

import re
from collections.abc import Mapping
from typing import Any
from warnings import warn

import torch

from headedit.edits.adapter import Adapter, Arithmetic, weighted_sum
from headedit.edits.adapter_state import BASE
from headedit.edits.arguments import as_config, as_list, check_order
from headedit.edits.config import EditConfig
from headedit.edits.contexts import AdapterContexts
from headedit.edits.edited_sites import edited_sites
from headedit.edits.summands import check_finite, site_shapes
from headedit.edits.values import real_number
from headedit.errors import HeadEditError
from headedit.io.describe import describe


class AdapterSet(AdapterContexts):
    """The adapters on a model, which can be added, chosen and deleted by name."""

    def add_adapter(self, adapter_name: str, config: EditConfig | Mapping[str, Any] | Arithmetic | None = None) -> None:
        """Adds edits under a name; they do nothing until ``set_adapter`` or ``route`` names them.

        Args:
            adapter_name: letters, digits, ``-`` and ``_``.
            config: the shape of new edits, or a mapping of its fields, by default that of the active adapter; or edits
                to copy, such as another handle, ``edits["arc"]``, or a sum, ``edits["arc"] + 0.5 * edits["boolq"]``.

        Raises:
            HeadEditError: there is an adapter of this name, or the edits do not fit this model.
        """
        check_order(adapter_name, config)
        self._check_name(adapter_name)
        if isinstance(config, Arithmetic):
            self._put(adapter_name, self._copied(config._adapter()))
            return
        config = as_config(config, self.module.config)
        self._put(adapter_name, Adapter(edited_sites(self.model, self.spec, config), config))

    def add_weighted_adapter(
        self, adapters: list[str], weights: list[float], adapter_name: str, combination_type: str = "linear"
    ) -> None:
        """Adds the weighted sum of some adapters under a name, as ``add_adapter(name, 0.5 * a + 0.5 * b)`` does.

        Args:
            adapters: names of adapters.
            weights: a factor for each.
            adapter_name: the name of the sum.
            combination_type: ``linear``, the only one; PEFT's others are about matrices of low rank.

        Raises:
            HeadEditError: a name is not known or taken, the numbers of names and weights differ, the adapters edit
                other sites, a weight or the sum is not finite, or the combination is another one.
        """
        if combination_type != "linear":
            raise HeadEditError(f"combination_type: found {combination_type!r}, expected 'linear': edits are vectors.")
        names = as_list(adapters, "adapters", "a list of names, such as ['default']")
        factors = as_list(weights, "weights", "a list of numbers, such as [0.5]")
        if not names or len(names) != len(factors):
            raise HeadEditError(f"Found {len(names)} adapters and {len(factors)} weights, expected one for each.")
        terms: list[tuple[float, Arithmetic]] = [
            (real_number(weight, f"weights[{i}]"), self[name])
            for i, (name, weight) in enumerate(zip(names, factors, strict=True))
        ]
        self.add_adapter(adapter_name, weighted_sum(terms))

    def set_adapter(self, adapter_name: str, inference_mode: bool = False) -> None:
        """Makes an adapter the one that acts and is trained; the others are frozen and do nothing.

        Args:
            adapter_name: its name.
            inference_mode: leave it frozen.

        Raises:
            HeadEditError: there is none of this name, or the edits are merged.
        """
        self._check_known(adapter_name)
        self._refuse_merged(f"'{adapter_name}' cannot be set")
        self.module.freeze()
        self._active = adapter_name
        if not inference_mode:
            self.module.unfreeze()
        self._refresh()

    def delete_adapter(self, adapter_name: str) -> None:
        """Removes an adapter. If it was the active one, the first of the others is set, and a warning says so.

        Raises:
            HeadEditError: there is none of this name, it is the only one, or the edits are merged.
        """
        self._check_known(adapter_name)
        self._refuse_merged(f"'{adapter_name}' cannot be deleted")
        if len(self._adapters) == 1:
            raise HeadEditError(f"'{adapter_name}' is the only adapter; detach() takes the edits off the model.")
        if adapter_name == self._active:
            first = next(other for other in self._adapters if other != adapter_name)
            warn(f"The active adapter '{adapter_name}' is deleted; '{first}' is set in its place.", stacklevel=2)
            self.set_adapter(first)
        del self._adapters[adapter_name]

    @torch.no_grad()
    def _copied(self, given: Adapter) -> Adapter:
        """An adapter with the values of a given one, on this model."""
        for site, edit in given.pairs():
            check_finite(dict(edit.vectors.items()), site)
        wanted = site_shapes(given.sites)
        sites = edited_sites(self.model, self.spec, given.config, names=wanted)
        found = site_shapes(sites)
        if found != wanted:
            name = next(name for name in wanted if found.get(name) != wanted[name])
            raise HeadEditError(
                f"These edits are of another model: at {name} they have {wanted[name]}, this model has "
                f"{found.get(name, 'none')}."
            )
        adapter = Adapter(sites, given.config)
        trainable = set(given.trainable())
        for (name, ours), theirs in zip(adapter.named_parameters(), given.parameters(), strict=True):
            ours.data = theirs.detach().to(ours.device, copy=True)
            ours.requires_grad_(name in trainable)
        for edit, like in zip(adapter, given, strict=True):
            edit.idle = like.idle
        adapter.strength, adapter.date = given.strength, given.date
        return adapter

    def _check_name(self, name: Any) -> None:
        if not isinstance(name, str) or not re.fullmatch(r"\w[\w-]*", name) or name == BASE:
            shown = repr(name) if isinstance(name, str) else describe(name)
            raise HeadEditError(f"{shown} cannot name an adapter: use letters, digits, '-' and '_', such as 'boolq'.")
        if hasattr(self._adapters, name) and name not in self._adapters:
            raise HeadEditError(
                f"'{name}' cannot name an adapter: torch's modules have a method of that name. Try '{name}_'."
            )
        if name in self._adapters:
            raise HeadEditError(f"There is an adapter '{name}' already; delete_adapter('{name}') removes it.")
