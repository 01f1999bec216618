"""Hooks around a pass of the whole model, by which edits of some tokens alone know which those are.

A model has them as soon as one of its adapters does not act on all tokens. What counts is what is known when the pass
begins: with labels, the cache and the context of that moment.
"""

import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from types import FrameType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from headedit.edits.positions import IN_WORDS, PassTokens
from headedit.edits.prompt_boundary import tokens_of
from headedit.errors import HeadEditError

_autograd_node: Any = getattr(torch._C, "_current_autograd_node", lambda: None)
_sequence_number: Any = getattr(torch._C._autograd, "_get_sequence_nr", lambda: 0)
_EAGER = "Run it without torch.compile; generate(..., disable_compile=True) leaves that out with a static cache."
_REMEMBERED = 256  # passes that recorded gradients, whose layers may still be recomputed


class TokenHooks:
    """The tokens of the passes under way on one model, in each thread of its own, and of passes that may be recomputed.

    Args:
        owner: whose ``prompt_lengths`` contexts count.
    """

    def __init__(self, owner: object) -> None:
        self._owner = owner
        self._threads = threading.local()
        self._recorded: list[tuple[int, int, PassTokens]] = []
        self._lock = threading.Lock()
        self._learnt: set[object] = set()
        self._hooks: list[RemovableHandle] = []

    def __reduce__(self) -> tuple[Any, ...]:
        return _in_no_pass, (), {"_owner": self._owner, "_hooks": self._hooks}

    def put_on(self, modules: Sequence[nn.Module]) -> None:
        """Puts the hooks on modules that are called by each other, the outermost first, in place of those before."""
        before = self._hooks
        self._hooks = []
        for module in modules:
            self._hooks.append(module.register_forward_pre_hook(self._begin, with_kwargs=True))
            self._hooks.append(module.register_forward_hook(self._end, always_call=True))
        for hook in before:
            hook.remove()

    @property
    def there(self) -> bool:
        """Whether there are hooks."""
        return bool(self._hooks)

    def remove(self) -> None:
        """Removes the hooks."""
        self.put_on([])

    def current(self) -> PassTokens:
        """The tokens of the pass that this thread is in, or whose layer it recomputes in a backward pass.

        Raises:
            HeadEditError: it is in none, or that pass is not known any more.
        """
        node = _autograd_node()
        number = None if node is None else node._sequence_nr()
        running = self._running()
        if running and running[-1].node == number:
            return running[-1].tokens
        if number is None:
            raise HeadEditError(
                "A layer was called without the model around it, or the model is compiled, so it cannot be told which "
                "tokens are prompt, which these edits need (EditConfig(positions=...)). Call the model itself. "
                f"{_EAGER}"
            )
        latest = {thread: (first, tokens) for thread, first, tokens in self._recorded if first <= number}
        if len(latest) != 1:
            why = "several threads have run this model" if latest else f"over {_REMEMBERED} passes have begun since"
            raise HeadEditError(
                f"A checkpointed layer is recomputed, and {why}, so it cannot be told which of its tokens are prompt. "
                "Run each pass and its backward pass in one thread, one after the other."
            )
        return latest.popitem()[1][1]

    def check_learns(self, found: bool | Tensor, positions: object) -> None:
        """Raises a HeadEditError where edits act on no token of the first batch that they are trained on.

        Args:
            found: the tokens that they act on, as ``PassTokens.acting`` gives them.
            positions: those of the edits.
        """
        if positions in self._learnt:
            return
        if isinstance(found, Tensor) and not found.is_meta and not bool(found.any()):
            raise HeadEditError(
                f"These edits act on {IN_WORDS[str(positions)]} alone, and the first batch to train on has no such "
                "token, so nothing would be learnt. Give labels of -100 to the tokens of prompts, and others to those "
                "of responses; or choose other positions."
            )
        self._learnt.add(positions)

    def _begin(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        if torch.compiler.is_compiling():
            return
        running, frame = self._running(), sys._getframe(1)
        if running:
            calls = set(_stack(frame))
            running[:] = [entry for entry in running if entry.frame in calls]  # an interrupt may have left others
        if running and running[-1].module is not module:
            return  # a part of the model that is in a pass
        node = _autograd_node()
        tokens = tokens_of(module, args, kwargs, self._owner)
        running.append(_Running(module, tokens, None if node is None else node._sequence_nr(), frame))
        if torch.is_grad_enabled():
            recorded = (threading.get_ident(), _sequence_number(), tokens)
            with self._lock:
                self._recorded = [*self._recorded[1 - _REMEMBERED :], recorded]

    def _end(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if torch.compiler.is_compiling():
            return
        running = self._running()
        if running and running[-1].module is module:
            running.pop().tokens.close()

    def _running(self) -> "list[_Running]":
        """The passes that this thread is in, the innermost last."""
        found: list[_Running] | None = getattr(self._threads, "running", None)
        if found is None:
            found = self._threads.running = []
        return found


def refuse_compiled(path: str) -> None:
    """Raises a HeadEditError while a graph is compiled in which an edit would act on some tokens alone."""
    raise HeadEditError(
        f"{path}: its edit acts on some tokens alone (EditConfig(positions=...)), which a compiled graph cannot tell. "
        f"{_EAGER}"
    )


class _Running(NamedTuple):
    """A pass under way.

    Fields:
        module: its outermost module.
        tokens: its tokens.
        node: the number of the node of a backward pass that it began in; None where it began in none.
        frame: of the module's call.
    """

    module: nn.Module
    tokens: PassTokens
    node: int | None
    frame: FrameType


def _stack(frame: FrameType | None) -> Iterator[FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back


def _in_no_pass() -> TokenHooks:
    made = TokenHooks.__new__(TokenHooks)
    made._threads, made._recorded, made._lock, made._learnt = threading.local(), [], threading.Lock(), set()
    return made
