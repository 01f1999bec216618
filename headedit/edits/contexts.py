"""Contexts in which a thread or task has other edits than the handle says: none, another strength, routed rows."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from torch import nn

from headedit.data.prompts import Known, known
from headedit.edits.adapter import Adapter
from headedit.edits.adapter_state import BASE, AdapterState
from headedit.edits.arguments import as_list
from headedit.edits.choices import NOTHING, Choice, Effective, Override, choice_of
from headedit.edits.routing import route_rows
from headedit.edits.strength import Strength, check_strength
from headedit.edits.values import whole_number
from headedit.errors import HeadEditError
from headedit.hf.compiled import is_compiled

_REVERTED = (
    "The edits are merged, and another thread or task has taken them out of the weights in disable_adapter(). Wait "
    "until it has left that, or call unmerge_adapter(): then each has its own."
)


class AdapterContexts(AdapterState):
    """Contexts that hold for the thread or task that enters them, and can be left in any order."""

    @contextmanager
    def disable_adapter(self) -> Iterator[nn.Module]:
        """A context in which the model is the base model, bit for bit, whether the edits are merged or not.

        It holds for the thread or asyncio task that enters it, and for tasks and ``asyncio.to_thread`` calls started in
        it, but not for other threads that are started in it. While the edits are merged it changes the weights, which
        all threads share: then other threads get an error instead of an answer.

        Raises:
            HeadEditError: the edits are merged, and a pass in another thread does not end.
        """
        with self._choices.entered(Override("disable_adapter()", NOTHING)):
            change = self.merged
            if change is not None:
                self._swap_weights(change.revert, _REVERTED)
            try:
                yield self.model
            finally:
                if change is not None and self.merged is change and self._count_off() == 1:
                    self._swap_weights(change.apply, None)

    @contextmanager
    def at_strength(self, strength: float) -> Iterator[nn.Module]:
        """A context in which the active adapter acts at another strength; see ``strength``.

        It holds for the thread or asyncio task that enters it, and for tasks and ``asyncio.to_thread`` calls started in
        it, but not for other threads that are started in it.

        Args:
            strength: the factor on its vectors in place of ``edits.strength``.

        Raises:
            HeadEditError: it is not a finite number, or the edits are merged.
        """
        self._refuse_merged("the strength cannot be changed")
        dial = Strength(check_strength(strength))
        with self._choices.entered(Override("at_strength()", adapter=self.module, dial=dial)):
            yield self.model

    @contextmanager
    def route(self, adapter_names: Sequence[str | None]) -> Iterator[nn.Module]:
        """A context in which each row of a batch has an adapter of its own, in ``forward`` and ``generate``.

        It holds for the thread or asyncio task that enters it, and for tasks and ``asyncio.to_thread`` calls started in
        it, but not for other threads that are started in it.

        The vectors are gathered when the context is entered, as they act in eval mode then, within ``at_strength`` too,
        so that a site costs one multiply-add however many adapters there are. A batch that is a multiple of the rows
        holds each of them several times, one after the other, as ``num_beams`` and ``num_return_sequences`` do.

        >>> import torch
        >>> from headedit.demo import MODEL_FOLDER  # a tiny model that comes with headedit; any causal LM will do
        >>> model = headedit.load_model(str(MODEL_FOLDER), device="cpu")
        >>> edits = headedit.attach(model)
        >>> edits.add_adapter("quiet")
        >>> edits.set_adapter("quiet")
        >>> edits.set_head(1, 5, scale=0.0)
        >>> rows = torch.tensor([[3, 4, 5], [3, 4, 5]])
        >>> with torch.no_grad(), edits.route(["quiet", None]):  # edits for the first row, none for the second
        ...     logits = model(rows).logits
        >>> torch.equal(logits[0], logits[1])
        False

        Args:
            adapter_names: an adapter for each row of the batch; None or ``"__base__"`` for the base model.

        Raises:
            HeadEditError: a name is not known, the model is in training mode or the edits are merged; in the context,
                a batch has another number of rows.
        """
        given = as_list(adapter_names, "route", "a list with a name, or None, for each row", least=1)
        names = [None if isinstance(name, str) and name == BASE else name for name in given]
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
        with self._hooks.passes.lock:
            routed = route_rows({name: self[name] for name in names if name is not None}, names, self._dials())
        with self._choices.entered(Override("route()", Choice(routed))):
            yield self.model

    def _dials(self) -> dict[Adapter, Strength]:
        """The strengths that the running context asked for, by adapter."""
        return {
            override.adapter: override.dial
            for override in self._choices.overrides()
            if override.adapter is not None and override.dial is not None
        }

    @contextmanager
    def prompt_lengths(self, lengths: Sequence[int]) -> Iterator[nn.Module]:
        """A context that says how many tokens of each row are prompt, for edits with ``positions`` other than ``all``.

        It holds for the thread or asyncio task that enters it, and for tasks and ``asyncio.to_thread`` calls started in
        it, but not for other threads that are started in it. What it says counts before labels, ``generate`` and the
        cache. Tokens are counted from the first of the row, in a cache too, without the padding that
        ``attention_mask`` masks. A batch that is a multiple of the rows holds each of them several times, one after the
        other, as ``num_beams`` and ``num_return_sequences`` do.

        Args:
            lengths: the number of prompt tokens of each row of the batch.

        Raises:
            HeadEditError: it is no list of whole numbers from 0 on; in the context, a batch has another number of rows.
        """
        wanted = "a list with the number of prompt tokens of each row, such as [12, 9]"
        given = as_list(lengths, "prompt_lengths", wanted, least=1)
        counts = [whole_number(length, "prompt_lengths", "whole numbers from 0 on") for length in given]
        if min(counts) < 0:
            raise HeadEditError(f"prompt_lengths: found {min(counts)}, expected {wanted}.")
        with known(Known(lengths=tuple(counts), owner=self._choices)):
            yield self.model

    @contextmanager
    def measured(self) -> Iterator[None]:
        """A context in which the edited model is run, as for an evaluation: the edits must act in it.

        Raises:
            HeadEditError: they are detached, disabled, or the caller is in a context such as ``route()``; or, in the
                end, no pass has reached them.
        """
        if not self.attached:
            raise HeadEditError("These edits are detached, so the model is not edited; attach or load them again.")
        if self.in_context():
            self.refuse_contexts("edits cannot be measured")
        if self.disabled:
            raise HeadEditError("These edits are disabled, so they cannot be measured: call enable_adapter_layers().")
        before = self._hooks.passes.count
        yield
        acts = self.merged is None and not all(edit.idle for edit in self.module)
        if acts and self._hooks.passes.count == before and not is_compiled(self.model):
            raise HeadEditError(
                f"No pass of this {type(self.model).__name__} has reached its edits, so what was measured is not the "
                "edited model: whatever runs it has taken the weights elsewhere. Attach the edits before the model is "
                "handed to an engine that compiles or copies it."
            )

    @contextmanager
    def applying(self, effective: "Mapping[str, Effective] | Adapter") -> Iterator[None]:
        """A context in which the hooks apply an adapter, or edits by site name at the active adapter's strength."""
        choice = choice_of(effective) if isinstance(effective, Adapter) else Choice(effective, self.module)
        with self._choices.entered(Override("another adapter", choice)):
            yield

    @contextmanager
    def deterministic_gates(self) -> Iterator[None]:
        """A context in which the active adapter's gates are not drawn in training mode: they are those of eval mode.

        Gradients reach them all the same. Log-probabilities of several passes can be compared then, as in preference
        and reinforcement learning. It holds for every thread, and for the backward passes within it.
        """
        with self._on_every_site("deterministic", True):
            yield

    @contextmanager
    def head_dropout(self, share: float) -> Iterator[None]:
        """A context in which each pass in training mode leaves the active adapter's edits of some heads out.

        It is dropout (Srivastava et al., JMLR 2014) with a head's edit as the unit: every pass draws its heads,
        for both vectors alike, and multiplies the edits of the others by 1 / (1 − share). Nothing is left out in eval
        mode and with deterministic gates.

        Args:
            share: probability that a head is left out, from 0 to below 1.

        Raises:
            HeadEditError: the share is not in that range.
        """
        if not 0 <= share < 1:
            raise HeadEditError(f"share: found {share}, expected a probability from 0 to below 1.")
        with self._on_every_site("dropout", share):
            yield

    @contextmanager
    def _on_every_site(self, name: str, value: object) -> Iterator[None]:
        """A context in which a field of the active adapter's edit has a value at all sites."""
        edits = list(self.module)
        before = [getattr(edit, name) for edit in edits]
        for edit in edits:
            setattr(edit, name, value)
        try:
            yield
        finally:
            for edit, found in zip(edits, before, strict=True):
                setattr(edit, name, found)

    def _count_off(self) -> int:
        return sum(asked.choice is NOTHING for asked in list(self._choices.live))
