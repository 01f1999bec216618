"""The passes under way on a model: the effective edits are chosen when a pass begins, and computed once for all sites.

Vectors and gates are small, so their cost is the number of operators, which is the same for one site and for all.
Nothing outlives a pass, and threads share nothing.
"""

import threading
import time
import weakref
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from headedit.edits.affine import Affine
from headedit.edits.choices import Choice, Choices, Effective
from headedit.edits.site_edit import SiteEdit, affine_all
from headedit.errors import HeadEditError

_saving_hooks: Any = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", None)
_autograd_node: Any = getattr(torch._C, "_current_autograd_node", lambda: None)
_sequence_number: Any = getattr(torch._C._autograd, "_get_sequence_nr", lambda: 0)
_PATIENCE = 60  # seconds
_REMEMBERED = 8  # changes of choice, between passes whose layers may still be recomputed


@dataclass(eq=False)
class Pass:
    """A pass that is under way in one thread.

    Fields:
        choice: the effective edits.
        strength: the factor on the vectors, a scalar; None for 1.
        active: what each site applies, without the sites whose edit is idle.
        together: the edits that are computed together, when the first site asks.
        mode: the mode of autograd that it began in.
        training: whether it is a pass in training mode that records gradients.
        thread: the thread that it runs in.
        found: the affine maps of ``together``, once they are computed.
        fired: the sites whose hook was called.
        kind: the modes of the model and of autograd, by which passes that should call the same sites are recognised.
        group: the processes that draw the same gates in it; None for this one alone.
    """

    choice: Choice
    strength: Tensor | None
    active: Mapping[str, Effective]
    together: list[SiteEdit]
    mode: Any
    training: bool
    thread: threading.Thread
    found: dict[SiteEdit, Affine] | None = None
    fired: set[str] = field(default_factory=set)
    kind: Hashable = None
    group: Any = None


@dataclass(frozen=True)
class _Recorded:
    """The choice of the passes of a thread from a node of its graphs on."""

    thread: int
    first_node: int
    choice: Choice
    strength: Tensor | None


class Passes:
    """The passes under way on one model, at most one in each thread.

    A site computes its own edit where it cannot share: while a graph is compiled, which fuses operators anyway; when a
    layer is called without the model around it; where the site is offloaded as a whole; and within a checkpointed
    segment, which must compute the same again when it is recomputed.

    Args:
        choices: of the handle and of contexts.

    Fields:
        lock: held while the values of a pass are read, and by whoever writes several of them.
        group: the processes that draw the same gates, as the last training pass knew; None for this one alone.
        count: how many passes in which edits act have begun; those of a compiled model are not counted.
    """

    def __init__(self, choices: Choices) -> None:
        self._choices = choices
        self._threads = threading.local()
        self._running: dict[int, Pass] = {}
        self._recorded: list[_Recorded] = []
        self._graph: tuple[weakref.ref[Any], threading.Thread] | None = None
        self.lock = threading.RLock()
        self.group: Any = None
        self.count = 0

    def __reduce__(self) -> tuple[Any, ...]:
        return Passes, (self._choices,)  # a copy is in no pass

    def begin(self, training: bool) -> Pass:
        """Begins a pass in this thread.

        Args:
            training: whether the model is in training mode.

        Raises:
            HeadEditError: no pass can be run now, or the model is being trained in another thread.
        """
        thread = threading.current_thread()
        training = training and torch.is_grad_enabled()
        running = Pass(self._choices.model, None, {}, [], None, training, thread)
        self._running[threading.get_ident()] = running  # before the choice is read; see ``wait_for_others``
        try:
            choice = self._choices.now()
            if choice.refusal is not None:
                raise HeadEditError(choice.refusal)
            if training:
                self._check_one_trains(running)
        except HeadEditError:
            self.end()
            raise
        running.choice, running.strength = choice, choice.strength
        running.active = {name: edit for name, edit in choice.by_site.items() if not edit.idle}
        running.together = [
            edit for edit in running.active.values() if isinstance(edit, SiteEdit) and "_hf_hook" not in edit.__dict__
        ]
        running.mode = _mode()
        if torch.is_grad_enabled():
            self._record(running)
        self._threads.running = running
        self.count += bool(running.active)
        return running

    def end(self) -> Pass | None:
        """Ends the pass of this thread, and gives it back; None where none is under way."""
        running: Pass | None = self.current()
        self._threads.running = None
        self._running.pop(threading.get_ident(), None)
        return running

    def current(self) -> Pass | None:
        """The pass that this thread is in."""
        return getattr(self._threads, "running", None)

    def wait_for_others(self) -> None:
        """Waits until no other thread is in a pass.

        A pass is listed before it reads its choice. So whoever changes the model's choice first, and then waits, knows
        that no pass acts as before the change.

        Raises:
            HeadEditError: a pass does not end.
        """
        own, end = threading.get_ident(), time.monotonic() + _PATIENCE
        while running := [of.thread for ident, of in list(self._running.items()) if ident != own]:
            alive = [thread.name for thread in running if thread.is_alive()]
            if not alive:
                return
            if time.monotonic() > end:
                raise HeadEditError(
                    f"The thread '{alive[0]}' has been in a pass for more than {_PATIENCE} s, so the weights that it "
                    "uses cannot be changed. Wait for it, or let it run another pass if it was interrupted."
                )
            time.sleep(0.001)

    def affine(self, running: Pass, edit: object) -> Affine | None:
        """The affine map of a site in a pass; None where the site has to compute it itself."""
        if not running.together or _mode() != running.mode:
            return None
        if running.found is None:
            with self.lock:
                if running.choice.dial is None:
                    running.strength = running.choice.strength  # as it is together with the vectors
                found = affine_all(running.together, running.strength, running.group)
            running.found = dict(zip(running.together, found, strict=True))
            if running.training:
                self._note_graph(running)
        return running.found.get(edit)  # type: ignore[call-overload, no-any-return]

    def outside(self) -> tuple[Choice, Tensor | None]:
        """The choice for a layer that is called without a pass, and the strength.

        In a backward pass a checkpointed layer is recomputed, possibly in another thread and after another adapter was
        set: its choice is that of the pass that it belongs to.
        """
        node = _autograd_node()
        if node is None or not self._recorded:
            choice = self._choices.now()
            return choice, choice.strength
        number = node._sequence_nr()
        latest = {of.thread: of for of in self._recorded if of.first_node <= number}
        found = list(latest.values()) or self._recorded[:1]
        first = found[0]
        if any(_differ(first, other) for other in found[1:]):
            raise HeadEditError(
                "A checkpointed layer is recomputed, and several threads have trained this model with different edits, "
                "so that it cannot be told which acted. Run the passes and their backward passes in one thread."
            )
        return first.choice, first.strength

    def _record(self, running: Pass) -> None:
        now = _Recorded(threading.get_ident(), _sequence_number(), running.choice, running.strength)
        if not self._recorded or self._recorded[-1].thread != now.thread or _differ(self._recorded[-1], now):
            self._recorded = [*self._recorded[1 - _REMEMBERED :], now]

    def _check_one_trains(self, running: Pass) -> None:
        own = threading.get_ident()
        training = [of.thread for ident, of in list(self._running.items()) if of.training and ident != own]
        graph = self._graph
        if graph is not None and graph[0]() is not None and graph[1] is not running.thread:
            training.append(graph[1])  # it has not yet run its backward pass
        for thread in training:
            if thread.is_alive():
                raise HeadEditError(
                    f"This model is being trained in the thread '{thread.name}', so it cannot be trained in "
                    f"'{running.thread.name}' at the same time: the threads would share gradients and gates. Train a "
                    "copy, copy.deepcopy(model), or one after the other."
                )

    def _note_graph(self, running: Pass) -> None:
        """Remembers that the graph of a training pass exists, until its backward pass reaches the edits."""
        assert running.found is not None
        tensors = (tensor for affine in running.found.values() for tensor in affine if tensor is not None)
        node = next((tensor.grad_fn for tensor in tensors if tensor.grad_fn is not None), None)
        if node is None:
            return
        token = _Token()
        metadata: Any = node.metadata  # declared as a method, and a property
        metadata["headedit"] = token  # lives as long as the graph does
        reference = weakref.ref(token)
        self._graph = (reference, running.thread)
        node.register_prehook(_Forget(self, reference))


class _Token:
    """Something that can be referred to weakly."""


class _Forget:
    """Called in a backward pass: the graph is no longer waiting for one."""

    def __init__(self, passes: Passes, reference: "weakref.ref[Any]") -> None:
        self._passes, self._reference = weakref.ref(passes), reference

    def __call__(self, gradients: object) -> None:
        passes = self._passes()
        if passes is not None and passes._graph is not None and passes._graph[0] is self._reference:
            passes._graph = None


def _differ(one: _Recorded, other: _Recorded) -> bool:
    return one.choice.by_site is not other.choice.by_site or one.strength is not other.strength


def _mode() -> tuple[bool, Any]:
    """Whether gradients are recorded and how tensors are saved for them: a checkpointed segment differs in that."""
    gradients = torch.is_grad_enabled()
    if _saving_hooks is None:
        return gradients, object() if gradients else None
    return gradients, _saving_hooks(True)
