"""Several edits on one model by name, with PEFT's method names; one acts, or another one in each row of a batch.

A model carries one hook a site, and one that looks after them, whatever the number of adapters: choosing another one
exchanges what the hooks apply.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from os import PathLike
from warnings import warn

import torch
from torch import nn

from headedit.edits.adapter import Adapter, edited_sites
from headedit.edits.algebra import Arithmetic, shapes_of
from headedit.edits.config import EditConfig
from headedit.edits.hooks import Acting, Switches
from headedit.edits.routing import RoutedEdit, routed
from headedit.errors import HeadEditError, suggest
from headedit.specs import MODULE_NAME, Spec

DEFAULT = "default"
"""The name of the edits that ``attach`` and ``load`` make."""


class AttachedAdapters(nn.ModuleDict):
    """The adapters of a model by name, as its submodule ``headedit``.

    Fields:
        handle: the handle that put them there.
    """

    handle: "AdapterSet"


class AdapterSet(Arithmetic):
    """The methods of ``HeadEdits`` for edits by name."""

    def __init__(self, model: nn.Module, spec: Spec, first: Adapter) -> None:
        self.model, self.spec = model, spec
        self._adapters = AttachedAdapters()
        self._adapters.handle = self
        self._switches = Switches(model)
        self._active = DEFAULT
        self._routed: dict[str, RoutedEdit] | None = None
        self._silent = False
        self._put(DEFAULT, first)
        model.add_module(MODULE_NAME, self._adapters)

    @property
    def module(self) -> Adapter:
        """The parameters of the active adapter."""
        return self[self._active]

    @property
    def active_adapter(self) -> str:
        """The name of the adapter that acts and is trained."""
        return self._active

    @property
    def adapters(self) -> list[str]:
        """The names of all adapters, in the order they were added."""
        return list(self._adapters)

    @property
    def strength(self) -> float:
        """A factor on both vectors of the active adapter, a dial: 0 is the base model, 1 the edits as trained.

        It is saved with them, and part of what ``merge_adapter``, ``harden`` and ``a + b`` take.
        """
        return self.module.strength

    @strength.setter
    def strength(self, value: float) -> None:
        self._refuse_merged("strength cannot be changed")
        self.module.strength = value

    def __getitem__(self, name: str) -> Adapter:
        """The edits of a name, which can be looked at, added and multiplied."""
        self._check_known(name)
        adapter = self._adapters[name]
        assert isinstance(adapter, Adapter)
        return adapter

    def _edits(self) -> Adapter:
        return self.module

    def add_adapter(self, name: str, adapter: EditConfig | Arithmetic | None = None) -> None:
        """Adds edits under a name; they rest until ``set_adapter`` or ``route`` names them.

        Args:
            name: letters, digits, ``-`` and ``_``.
            adapter: a config for fresh edits, by default that of the active adapter; or edits to copy, such as another
                handle, ``edits["arc"]``, or a sum, ``edits["arc"] + 0.5 * edits["boolq"]``.

        Raises:
            HeadEditError: there is an adapter of this name, or the edits do not fit this model.
        """
        self._check_name(name)
        if isinstance(adapter, Arithmetic):
            self._put(name, self._copied(adapter._edits()))
            return
        config = self.module.config if adapter is None else adapter
        self._put(name, Adapter(edited_sites(self.model, self.spec, config), config))

    def load_adapter(self, path: "str | PathLike[str]", name: str, *, revision: str | None = None) -> None:
        """Adds saved edits under a name; they rest until ``set_adapter`` or ``route`` names them.

        Args:
            path: a folder that ``save_pretrained`` wrote, or the id of a repository on the Hugging Face hub.
            name: letters, digits, ``-`` and ``_``.
            revision: the revision of a hub repository.

        Raises:
            HeadEditError: as for ``load``, or there is an adapter of this name.
        """
        from headedit.edits.files.storage import load_for

        self._check_name(name)
        self._put(name, load_for(self.model, self.spec, path, revision))

    def set_adapter(self, name: str) -> None:
        """Makes the adapter of a name the one that acts and is trained; the others are frozen and do nothing.

        Raises:
            HeadEditError: there is none of this name, or the edits are merged.
        """
        self._check_known(name)
        self._refuse_merged(f"'{name}' cannot be set")
        self.module.rest()
        self._active = name
        self.module.wake()
        self._refresh()

    def delete_adapter(self, name: str) -> None:
        """Takes an adapter off. Where it was the active one, the first that is left is set, and a warning says so.

        Raises:
            HeadEditError: there is none of this name, it is the only one, or the edits are merged.
        """
        self._check_known(name)
        self._refuse_merged(f"'{name}' cannot be deleted")
        if len(self._adapters) == 1:
            raise HeadEditError(f"'{name}' is the only adapter; detach() takes the edits off the model.")
        if name == self._active:
            first = next(other for other in self._adapters if other != name)
            warn(f"The active adapter '{name}' is deleted; '{first}' is set in its place.", stacklevel=2)
            self.set_adapter(first)
        del self._adapters[name]

    @contextmanager
    def disable_adapter(self) -> Iterator[nn.Module]:
        """A context in which the model is the base model, bit for bit."""
        from headedit.edits.merge.merge import suspended

        before = self._silent
        self.silence(True)
        try:
            with suspended(self):
                yield self.model
        finally:
            self.silence(before)

    @contextmanager
    def route(self, names: Sequence[str | None]) -> Iterator[nn.Module]:
        """A context in which each row of a batch has an adapter of its own, in ``forward`` and ``generate``.

        The vectors are gathered when the context is entered, as they act in eval mode then, so that a site costs one
        multiply-add however many adapters there are. A batch that is a multiple of the rows holds each of them several
        times over, one after the other, as ``num_beams`` and ``num_return_sequences`` do.

        Args:
            names: an adapter for each row of the batch; None for the base model.

        Raises:
            HeadEditError: a name is not known, the model is in training mode or the edits are merged; in the context,
                a batch has another number of rows.
        """
        for name in names:
            if name is not None:
                self._check_known(name)
        if isinstance(names, str) or not names:
            raise HeadEditError(f"route: found {names!r}, expected a list with a name, or None, for each row.")
        self._refuse_merged("rows cannot be routed")
        if self.spec.no_routing is not None:
            raise HeadEditError(
                f"{type(self.model).__name__} cannot be routed by row: {self.spec.no_routing}. Run the rows of each "
                "adapter by themselves, after set_adapter."
            )
        if self.model.training:
            raise HeadEditError(
                "route() works in eval mode: call model.eval() first, and train adapters one at a time."
            )
        before, self._routed = self._routed, routed(self._by_name(), names)
        self._refresh()
        try:
            yield self.model
        finally:
            self._routed = before
            self._refresh()

    def silence(self, silent: bool) -> None:
        """Lets the hooks do nothing, as while the edits are merged, or act again."""
        self._silent = silent
        self._refresh()

    def _by_name(self) -> dict[str, Adapter]:
        return {name: self[name] for name in self._adapters}

    def _put(self, name: str, module: Adapter) -> None:
        module.train(self.model.training)
        for site in module.where:
            self._switches.put(site)
        self._adapters[name] = module
        if name != self._active:
            module.rest()
        self._refresh()

    def _refresh(self) -> None:
        acting: Mapping[str, Acting] | None = {} if self._silent else self._routed
        if acting is None:
            acting = {site.name: edit for site, edit in self.module.pairs()}
        self._switches.set(acting)

    @torch.no_grad()
    def _copied(self, given: Adapter) -> Adapter:
        """Edits like given ones, on this model."""
        wanted = shapes_of(given.where)
        sites = edited_sites(self.model, self.spec, given.config, names=wanted)
        found = shapes_of(sites)
        if found != wanted:
            name = next(name for name in wanted if found.get(name) != wanted[name])
            raise HeadEditError(
                f"These edits are of another model: at {name} they have {wanted[name]}, this model has "
                f"{found.get(name, 'none')}."
            )
        module = Adapter(sites, given.config)
        trainable = set(given.trainable())
        for (name, ours), theirs in zip(module.named_parameters(), given.parameters(), strict=True):
            ours.data = theirs.detach().to(ours.device, copy=True)
            ours.requires_grad_(name in trainable)
        for edit, like in zip(module, given, strict=True):
            edit.idle = like.idle
        module.strength = given.strength
        return module

    def _check_known(self, name: str) -> None:
        if name not in self._adapters:
            known = ", ".join(self._adapters)
            raise HeadEditError(f"There is no adapter '{name}'.{suggest(str(name), self.adapters)} Adapters: {known}.")

    def _check_name(self, name: str) -> None:
        if not isinstance(name, str) or not re.fullmatch(r"\w[\w-]*", name):
            raise HeadEditError(f"{name!r} cannot name an adapter: use letters, digits, '-' and '_', such as 'boolq'.")
        if hasattr(nn.ModuleDict, name):
            raise HeadEditError(
                f"'{name}' cannot name an adapter: torch's modules have a method of that name. Try '{name}_'."
            )
        if name in self._adapters:
            raise HeadEditError(f"There is an adapter '{name}' already; delete_adapter('{name}') takes it off.")

    def _refuse_merged(self, what: str) -> None:
        from headedit.edits.merge.merge import is_merged

        if is_merged(self):
            raise HeadEditError(f"While the edits are merged {what}: call unmerge_adapter() first.")
