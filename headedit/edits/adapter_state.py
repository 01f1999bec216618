"""Which adapter acts on a model: the active one, none, another one in each row of a batch, or one in the weights.

A model carries one hook per site, and one pair around them, whatever the number of adapters: choosing another adapter
exchanges what the hooks apply.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from torch import nn

from headedit.edits.adapter import Adapter, Arithmetic
from headedit.edits.attached import AttachedAdapters
from headedit.edits.hooks import Effective, SiteHooks
from headedit.edits.routing import route_rows
from headedit.edits.weight_change import WeightChange
from headedit.errors import HeadEditError, suggest
from headedit.specs import MODULE_NAME, Spec

DEFAULT = "default"
"""The name of the adapter that ``attach`` and ``load`` make."""

BASE = "__base__"
"""The name, as in PEFT, of no adapter: the base model."""


class AdapterState(Arithmetic):
    """Which of the adapters on a model acts, and whether it is in the weights.

    Fields:
        model: the edited model.
        spec: where its heads are.
        merged: what a merge changed in the model's weights; None while the edits are not merged.
    """

    def __init__(self, model: nn.Module, spec: Spec, first: Adapter) -> None:
        self.model, self.spec = model, spec
        self.merged: WeightChange | None = None
        self._adapters = AttachedAdapters()
        self._adapters._handle = self
        self._hooks = SiteHooks(model)
        self._active = DEFAULT
        self._override: Mapping[str, Effective] | None = None
        self._disabled = False
        self._layers_enabled = True
        self._put(DEFAULT, first)
        self._adapters.put_on(model)

    def __copy__(self) -> "AdapterState":
        return self  # the state is the model's: two handles of one model would contradict each other

    @property
    def module(self) -> Adapter:
        """The parameters of the active adapter."""
        return self[self._active]

    @property
    def attached(self) -> bool:
        """False once ``detach`` was called."""
        return self.model._modules.get(MODULE_NAME) is self._adapters

    @property
    def active_adapter(self) -> str:
        """The name of the adapter that acts and is trained."""
        return self._active

    @property
    def active_adapters(self) -> list[str]:
        """The name of the active adapter, in a list as in PEFT."""
        return [self._active]

    @property
    def merged_adapters(self) -> list[str]:
        """The names of the adapters that are merged into the weights."""
        return [] if self.merged is None else list(self.merged.adapter_names)

    @property
    def adapters(self) -> list[str]:
        """The names of all adapters, in the order they were added."""
        return list(self._adapters)

    @property
    def disabled(self) -> bool:
        """Whether the model is the base model now: inside ``disable_adapter()``, or by ``disable_adapter_layers``."""
        return self._disabled or not self._layers_enabled

    @property
    def strength(self) -> float:
        """A factor on both vectors of the active adapter, a dial: 0 is the base model, 1 the edits as trained.

        It is saved with them, and is part of the values that ``merge_adapter``, ``harden`` and ``a + b`` use.
        """
        return self.module.strength

    @strength.setter
    def strength(self, value: float) -> None:
        self._refuse_merged("strength cannot be changed")
        self.module.strength = value

    def __getitem__(self, adapter_name: str) -> Adapter:
        """The edits of a name, which can be looked at, added and multiplied."""
        self._check_known(adapter_name)
        adapter = self._adapters[adapter_name]
        assert isinstance(adapter, Adapter)
        return adapter

    def _adapter(self) -> Adapter:
        return self.module

    @contextmanager
    def disable_adapter(self) -> Iterator[nn.Module]:
        """A context in which the model is the base model, bit for bit, whether the edits are merged or not."""
        outermost, change = not self._disabled, self.merged
        self._disabled = True
        if outermost and change is not None:
            change.revert()
        self._refresh()
        try:
            yield self.model
        finally:
            self._disabled = not outermost
            if outermost and change is not None and self.merged is change:
                change.apply()
            self._refresh()

    def disable_adapter_layers(self) -> None:
        """Makes the model the base model until ``enable_adapter_layers``.

        Raises:
            HeadEditError: the edits are merged.
        """
        self._refuse_merged("they cannot be switched off in place; disable_adapter() is a context that can")
        self._layers_enabled = False
        self._refresh()

    def enable_adapter_layers(self) -> None:
        """Lets the edits act again after ``disable_adapter_layers``."""
        self._layers_enabled = True
        self._refresh()

    @contextmanager
    def route(self, adapter_names: Sequence[str | None]) -> Iterator[nn.Module]:
        """A context in which each row of a batch has an adapter of its own, in ``forward`` and ``generate``.

        The vectors are gathered when the context is entered, as they act in eval mode then, so that a site costs one
        multiply-add however many adapters there are. A batch that is a multiple of the rows holds each of them several
        times, one after the other, as ``num_beams`` and ``num_return_sequences`` do.

        Args:
            adapter_names: an adapter for each row of the batch; None or ``"__base__"`` for the base model.

        Raises:
            HeadEditError: a name is not known, the model is in training mode or the edits are merged; in the context,
                a batch has another number of rows.
        """
        if isinstance(adapter_names, str) or not adapter_names:
            raise HeadEditError(f"route: found {adapter_names!r}, expected a list with a name, or None, for each row.")
        names = [None if name == BASE else name for name in adapter_names]
        for name in names:
            if name is not None:
                self._check_known(name)
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
        with self.applying(route_rows({name: self[name] for name in self._adapters}, names)):
            yield self.model

    @contextmanager
    def applying(self, effective: "Mapping[str, Effective] | Adapter") -> Iterator[None]:
        """A context in which the hooks apply an adapter, or edits by site name, in place of the active adapter."""
        before = self._override
        self._override = _by_site(effective) if isinstance(effective, Adapter) else effective
        self._refresh()
        try:
            yield
        finally:
            self._override = before
            self._refresh()

    def set_merged(self, change: WeightChange | None) -> None:
        """Records that the edits are in the weights, or no longer; the hooks do nothing while they are."""
        self.merged = change
        self._refresh()

    def _put(self, name: str, adapter: Adapter) -> None:
        adapter.train(self.model.training)
        for site in adapter.sites:
            self._hooks.add(site)
        self._adapters[name] = adapter
        if name != self._active:
            adapter.freeze()
        self._refresh()

    def _refresh(self) -> None:
        if self.merged is not None or self.disabled:
            self._hooks.set({})
        else:
            self._hooks.set(_by_site(self.module) if self._override is None else self._override)

    def _check_known(self, name: str) -> None:
        if name not in self._adapters:
            known = ", ".join(self._adapters)
            raise HeadEditError(f"There is no adapter '{name}'.{suggest(str(name), self.adapters)} Adapters: {known}.")

    def _refuse_merged(self, what: str) -> None:
        if self.merged is not None:
            raise HeadEditError(f"While the edits are merged {what}: call unmerge_adapter() first.")


def _by_site(adapter: Adapter) -> dict[str, Effective]:
    return {site.name: edit for site, edit in adapter.pairs()}
