"""The layers of a model below its first edited one: runs them alone, and replays their output."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from headedit.edits import HeadEdits
from headedit.errors import HeadEditError
from headedit.hf.layers import stack_of
from headedit.specs import HeadSite

Forward = Callable[..., Any]
Wrap = Callable[[Tensor], Any]
"""Makes a layer's output of its hidden state."""


class LowerLayers:
    """The layers of a stack below the first edited one.

    Args:
        edits: the handle.

    Fields:
        model: the model.
        count: number of these layers, which is the index of the first edited one.

    Raises:
        HeadEditError: the first layer is edited, or the edited layers are in several stacks or in none.
    """

    def __init__(self, edits: HeadEdits) -> None:
        self.model = edits.model
        edited = sorted({site.layer for site in edits.sites})
        self.count = edited[0]
        if self.count == 0:
            raise HeadEditError(
                f"cache_prefix: layers {', '.join(map(str, edited))} are edited, so there is no layer below them to "
                "cache. Edit upper layers alone, such as EditConfig(layers='8:'), or leave cache_prefix off."
            )
        stacks = {_stack_of(edits.model, site) for site in edits.sites}
        if len(stacks) > 1:
            raise HeadEditError(
                f"cache_prefix: the edited layers are in several stacks, {', '.join(sorted(stacks))}, so there is no "
                "first one. Leave cache_prefix off."
            )
        stack = edits.model.get_submodule(stacks.pop())
        assert isinstance(stack, nn.ModuleList)
        self._layers = list(stack)[: self.count]
        self._wraps: list[Wrap] = [_hidden_alone] * self.count
        self._originals = ExitStack()

    def run(self, ids: Tensor) -> Tensor:
        """The output of the last of them for one example, [tokens, hidden], without running the layers above.

        Args:
            ids: token ids, [tokens].

        Raises:
            HeadEditError: the layer returns something else, or the forward pass does not run it.
        """
        row = rearrange(ids, "token -> 1 token")
        with self._replaced([self._recording(i, layer.forward) for i, layer in enumerate(self._layers)]):
            try:
                self.model(input_ids=row, attention_mask=torch.ones_like(row), use_cache=False)
            except _PrefixDone as done:
                hidden = done.hidden
            else:
                raise self._refusal(f"a forward pass does not run layer {self.count - 1}")
        if hidden.dim() != 3 or hidden.shape[:2] != row.shape:
            raise self._refusal(f"layer {self.count - 1} returns {list(hidden.shape)}, not [batch, tokens, hidden]")
        return hidden[0]

    def replay(self, hidden: Tensor) -> None:
        """Makes all of them return a hidden state, [batch, tokens, hidden], without computing, until ``restore``."""
        self._replace([_returning(hidden, wrap) for wrap in self._wraps])

    def restore(self) -> None:
        """Restores the layers' own forward passes."""
        self._originals.close()

    def _replace(self, forwards: Sequence[Forward]) -> None:
        self.restore()
        for layer, forward in zip(self._layers, forwards, strict=True):
            self._originals.callback(_set_forward, layer, vars(layer).get("forward"))
            vars(layer)["forward"] = forward

    @contextmanager
    def _replaced(self, forwards: Sequence[Forward]) -> Iterator[None]:
        self._replace(forwards)
        try:
            yield
        finally:
            self.restore()

    def _recording(self, index: int, forward: Forward) -> Forward:
        """A layer's forward pass that records how its output wraps the hidden state; the last layer's ends the pass."""

        def recording(*args: Any, **kwargs: Any) -> Any:
            output = forward(*args, **kwargs)
            hidden, wrap = output, _hidden_alone
            if isinstance(output, tuple | list) and output:
                hidden, wrap = output[0], partial(_hidden_first, type(output), len(output))
            if not isinstance(hidden, Tensor):
                raise self._refusal(f"layer {index} returns a {type(output).__name__}")
            self._wraps[index] = wrap
            if index == self.count - 1:
                refuse_autocast(hidden)
                raise _PrefixDone(hidden)
            return output

        return recording

    def _refusal(self, why: str) -> HeadEditError:
        return HeadEditError(
            f"cache_prefix: the layers of {type(self.model).__name__} pass on more than hidden states ({why}), so it "
            "is unavailable for this architecture: leave it off."
        )


class _PrefixDone(Exception):
    """Ends a forward pass after the last of the lower layers."""

    def __init__(self, hidden: Tensor) -> None:
        self.hidden = hidden


def refuse_autocast(hidden: Tensor) -> None:
    """Refuses autocast, under which a cached hidden state would differ from a computed one.

    Raises:
        HeadEditError: autocast is on for the device of ``hidden``.
    """
    if torch.is_autocast_enabled(hidden.device.type):
        raise HeadEditError(
            "cache_prefix: the forward pass is under autocast, so the cached values would differ from computed ones. "
            "Load the model in bfloat16 and leave the training arguments bf16 and fp16 off, or leave cache_prefix off."
        )


def _set_forward(layer: nn.Module, forward: Forward | None) -> None:
    """Sets a layer's own ``forward``, as accelerate does; None removes it, which leaves that of its class."""
    if forward is None:
        vars(layer).pop("forward", None)
    else:
        vars(layer)["forward"] = forward


def _hidden_alone(hidden: Tensor) -> Any:
    """The output of a layer that returns its hidden state alone."""
    return hidden


def _hidden_first(kind: Callable[[list[Any]], Any], length: int, hidden: Tensor) -> Any:
    """The output of a layer that returns its hidden state first in a tuple or list, whose rest is optional."""
    return kind([hidden, *[None] * (length - 1)])


def _returning(hidden: Tensor, wrap: Wrap) -> Forward:
    """A forward pass for a layer that returns a hidden state without computing."""

    def returning(*args: Any, **kwargs: Any) -> Any:
        refuse_autocast(hidden)
        output = hidden
        if torch.is_grad_enabled() and any(
            isinstance(a, Tensor) and a.requires_grad for a in (*args, *kwargs.values())
        ):
            output = hidden.detach().requires_grad_()  # reentrant checkpointing of the layers above needs it
        return wrap(output)

    return returning


def _stack_of(model: nn.Module, site: HeadSite) -> str:
    """The name of the list of layers that a site is in."""
    stack = stack_of(model, site.path)
    if stack is None:
        raise HeadEditError(f"cache_prefix: {site.path} is in no ModuleList of layers. Leave cache_prefix off.")
    return stack
