"""Which adapter acts on a model: the active one, none, another one in each row of a batch, or one in the weights.

A model carries one hook per site, and one pair around them, whatever the number of adapters: choosing another adapter
exchanges what the hooks apply. What is set on the handle holds for every thread, from the next pass on; contexts such
as ``disable_adapter()`` hold for the thread or asyncio task that entered them.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import EllipsisType

from torch import nn

from headedit.edits.adapter import Adapter, Arithmetic
from headedit.edits.attached import AttachedAdapters
from headedit.edits.choices import NOTHING, Choice, choice_of, new_choices
from headedit.edits.hooks import SiteHooks
from headedit.edits.weight_change import WeightChange
from headedit.errors import HeadEditError, suggest
from headedit.hf.sharding import from_first
from headedit.io.describe import describe
from headedit.specs import MODULE_NAME, Spec

DEFAULT = "default"
"""The name of the adapter that ``attach`` and ``load`` make."""

_CHANGING = "The weights of this model are being merged or unmerged in another thread. Try again when that is done."

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
        self._choices = new_choices()
        self._hooks = SiteHooks(model, spec, self._choices)
        self._active = DEFAULT
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
        """Whether the model is the base model here: in ``disable_adapter()``, or by ``disable_adapter_layers``."""
        return self._choices.off or any(asked.choice is NOTHING for asked in self._choices.overrides())

    @property
    def strength(self) -> float:
        """A factor on both vectors of the active adapter, a dial: 0 is the base model, 1 the edits as trained.

        It is saved with them, and is part of the values that ``merge_adapter``, ``harden`` and ``a + b`` use. It holds
        for every thread, from the next pass on; ``at_strength`` is a context for one of them.
        """
        return self.module.strength

    @strength.setter
    def strength(self, value: float) -> None:
        with self.writing("the strength cannot be changed"):
            self.module.strength = value

    def __getitem__(self, adapter_name: str) -> Adapter:
        """The edits of a name, which can be looked at, added and multiplied."""
        self._check_known(adapter_name)
        adapter = self._adapters[adapter_name]
        assert isinstance(adapter, Adapter)
        return adapter

    def _adapter(self) -> Adapter:
        return self.module

    def disable_adapter_layers(self) -> None:
        """Makes the model the base model until ``enable_adapter_layers``, in every thread.

        Raises:
            HeadEditError: the edits are merged.
        """
        self._refuse_merged("they cannot be switched off in place; disable_adapter() is a context that can")
        self._choices.off = True

    def enable_adapter_layers(self) -> None:
        """Lets the edits act again after ``disable_adapter_layers``."""
        self._choices.off = False

    def change_weights(self, change: WeightChange | None) -> None:
        """Merges, by applying a change of the weights, or unmerges, by None; the hooks do nothing while merged.

        Raises:
            HeadEditError: a thread or task is in a context such as ``route()``, or a pass does not end.
        """
        if change is not None:
            self.refuse_contexts("the edits cannot be merged")
            self._swap_weights(change.apply, None, merged=change)
        elif self.merged is not None:
            self._swap_weights(self.merged.revert, None, merged=None)

    @contextmanager
    def writing(self, what: str) -> Iterator[None]:
        """A context in which the values of edits are written: a pass in another thread sees all of it or nothing.

        Args:
            what: what cannot be done while the edits are merged, for the error, such as "they cannot be hardened".

        Raises:
            HeadEditError: the edits are merged.
        """
        self._refuse_merged(what)
        with self._hooks.passes.lock:
            yield

    def in_context(self) -> bool:
        """Whether the running thread or task is in ``disable_adapter()`` or another such context."""
        return bool(self._choices.overrides())

    def refuse_contexts(self, what: str) -> None:
        """Raises a HeadEditError where a thread or task is in ``disable_adapter()`` or another such context.

        Args:
            what: what cannot be done then, such as "nothing can be trained".
        """
        own = self._choices.overrides()
        live = own or list(self._choices.live)
        if live:
            where = "" if own else " in another thread or task"
            raise HeadEditError(f"Inside {live[-1].what}{where}, {what}: leave that context first.")

    def _swap_weights(
        self, swap: Callable[[], None], refusal: str | None, *, merged: "WeightChange | EllipsisType | None" = ...
    ) -> None:
        """Changes the weights between passes, and then what the passes of other contexts meet.

        Args:
            swap: changes the weights.
            refusal: the error that passes get from then on, unless their context disables the edits; None for none.
            merged: the new value of ``merged``; left out to keep it.
        """
        before = self._choices.model
        self._choices.model = Choice({}, refusal=_CHANGING)
        try:
            self._hooks.passes.wait_for_others()
            swap()
        except BaseException:
            self._choices.model = before
            raise
        if merged is not ...:
            self.merged = merged
        self._refresh(refusal)

    def _stop(self) -> None:
        """Takes the hooks off, between passes; what is compiled with them gives the base model."""
        self._choices.model = NOTHING
        self._hooks.passes.wait_for_others()
        self._hooks.remove()

    def _put(self, name: str, adapter: Adapter) -> None:
        if adapter.config.positions != "all" and self.spec.no_routing is not None:
            raise HeadEditError(
                f"Edits of a {type(self.model).__name__} can act on all tokens only, EditConfig(positions='all'): "
                f"{self.spec.no_routing}."
            )
        adapter.train(self.model.training)
        self._hooks.add(adapter.sites, adapter.config.positions)
        if adapter.config.init_std and (group := self._hooks.group()) is not None:
            for parameter in adapter.parameters():
                from_first(parameter.data, group)
        self._adapters[name] = adapter
        if name != self._active:
            adapter.freeze()
        self._refresh()

    def _refresh(self, refusal: str | None = None) -> None:
        """Makes the hooks apply the active adapter from the next pass on, or nothing while it is merged."""
        self._choices.model = choice_of(self.module) if self.merged is None else Choice({}, refusal=refusal)

    def _check_known(self, name: str) -> None:
        if not isinstance(name, str):
            raise HeadEditError(
                f"Found {describe(name)}, expected the name of one adapter. Adapters: {', '.join(self._adapters)}."
            )
        if name not in self._adapters:
            raise HeadEditError(f"There is no adapter '{name}'.{suggest(str(name), self._adapters, title='Adapters')}")

    def _refuse_merged(self, what: str) -> None:
        if self.merged is not None:
            raise HeadEditError(f"While the edits are merged, {what}: call unmerge_adapter() first.")
