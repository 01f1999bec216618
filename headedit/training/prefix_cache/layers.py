"""The layers of a model below its first edited one: run alone, and stood in for by what they would give."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from headedit.edits import HeadEdits
from headedit.errors import HeadEditError
from headedit.specs import HeadSite

Forward = Callable[..., Any]
Form = Callable[[Tensor], Any]


class LowerLayers:
    """The layers of a stack below the first edited one.

    Args:
        edits: the handle.

    Fields:
        count: how many there are, which is the index of the first edited layer.

    Raises:
        HeadEditError: the first layer is edited, the sites are in several stacks, or in none.
    """

    def __init__(self, edits: HeadEdits) -> None:
        self.model = edits.model
        edited = sorted({site.layer for site in edits.sites})
        self.count = edited[0]
        if self.count == 0:
            raise HeadEditError(
                f"cache_prefix: layers {', '.join(map(str, edited))} are edited, so there is no layer below them to "
                "keep the output of. Edit upper layers alone, such as EditConfig(layers='8:'), or leave it off."
            )
        stacks = {_stack_of(edits.model, site) for site in edits.sites}
        if len(stacks) > 1:
            raise HeadEditError(
                f"cache_prefix: the edited layers are in several stacks, {', '.join(sorted(stacks))}, so there is no "
                "first one. Leave it off."
            )
        stack = edits.model.get_submodule(stacks.pop())
        assert isinstance(stack, nn.ModuleList)
        self._layers = list(stack)[: self.count]
        self._forms: list[Form] = [_as_it_is] * self.count
        self._before: list[tuple[nn.Module, Forward | None]] = []

    def run(self, ids: Tensor) -> Tensor:
        """What the last of them gives for one example, [tokens, hidden], without running the layers above.

        Args:
            ids: token ids, [tokens].

        Raises:
            HeadEditError: it gives something else, or is not come to.
        """
        row = ids[None]
        with self._replaced([self._recording(i, layer.forward) for i, layer in enumerate(self._layers)]):
            try:
                self.model(input_ids=row, attention_mask=torch.ones_like(row), use_cache=False)
            except _Reached as reached:
                hidden = reached.hidden
            else:
                raise self._refusal(f"a forward pass does not come through layer {self.count - 1}")
        if hidden.dim() != 3 or hidden.shape[:2] != row.shape:
            raise self._refusal(f"layer {self.count - 1} gives {list(hidden.shape)}, not [batch, tokens, hidden]")
        return hidden[0]

    def stand_in(self, hidden: Tensor) -> None:
        """Lets all of them give a hidden state, [batch, tokens, hidden], and compute nothing, until ``step_aside``."""
        self._replace([_giving(hidden, form) for form in self._forms])

    def step_aside(self) -> None:
        """Gives the layers their own forward passes back."""
        for layer, forward in self._before:
            if forward is None:
                vars(layer).pop("forward", None)
            else:
                vars(layer)["forward"] = forward
        self._before = []

    def _replace(self, forwards: Sequence[Forward]) -> None:
        self.step_aside()
        self._before = [(layer, vars(layer).get("forward")) for layer in self._layers]
        for layer, forward in zip(self._layers, forwards, strict=True):
            vars(layer)["forward"] = forward

    @contextmanager
    def _replaced(self, forwards: Sequence[Forward]) -> Iterator[None]:
        self._replace(forwards)
        try:
            yield
        finally:
            self.step_aside()

    def _recording(self, index: int, forward: Forward) -> Forward:
        """The forward pass of a layer, which takes down the form of what it gives; the last one ends the pass."""

        def recording(*args: Any, **kwargs: Any) -> Any:
            given = forward(*args, **kwargs)
            hidden, form = given, _as_it_is
            if isinstance(given, tuple | list) and given:
                hidden, form = given[0], partial(_first_of, type(given), len(given))
            if not isinstance(hidden, Tensor):
                raise self._refusal(f"layer {index} gives a {type(given).__name__}")
            self._forms[index] = form
            if index == self.count - 1:
                refuse_autocast(hidden)
                raise _Reached(hidden)
            return given

        return recording

    def _refusal(self, why: str) -> HeadEditError:
        return HeadEditError(
            f"cache_prefix: the layers of {type(self.model).__name__} hand on more than hidden states ({why}). "
            "This architecture cannot have it: leave it off."
        )


class _Reached(Exception):
    """Ends a forward pass behind the last of the lower layers."""

    def __init__(self, hidden: Tensor) -> None:
        self.hidden = hidden


def refuse_autocast(hidden: Tensor) -> None:
    """Refuses autocast, under which a pass differs from one beside it.

    Raises:
        HeadEditError: it is on.
    """
    if torch.is_autocast_enabled(hidden.device.type):
        raise HeadEditError(
            "cache_prefix: the forward pass is under autocast, and what is kept would not be what it computes. Load "
            "the model in bfloat16 and leave bf16 and fp16 of the training arguments off, or leave cache_prefix off."
        )


def _as_it_is(hidden: Tensor) -> Any:
    """What a layer gives that gives a hidden state."""
    return hidden


def _first_of(kind: Callable[[list[Any]], Any], length: int, hidden: Tensor) -> Any:
    """What a layer gives that gives it as the first of a tuple or list, of which the rest is optional."""
    return kind([hidden, *[None] * (length - 1)])


def _giving(hidden: Tensor, form: Form) -> Forward:
    """The stand-in for a layer."""

    def giving(*args: Any, **kwargs: Any) -> Any:
        refuse_autocast(hidden)
        given = hidden
        if torch.is_grad_enabled() and any(
            isinstance(a, Tensor) and a.requires_grad for a in (*args, *kwargs.values())
        ):
            given = hidden.detach().requires_grad_()  # reentrant checkpointing needs it of the layers above
        return form(given)

    return giving


def _stack_of(model: nn.Module, site: HeadSite) -> str:
    """The name of the list of layers that a site's path goes through."""
    parts = site.path.split(".")
    for i, part in enumerate(parts):
        above = ".".join(parts[:i])
        if part == str(site.layer) and isinstance(model.get_submodule(above), nn.ModuleList):
            return above
    raise HeadEditError(f"cache_prefix: {site.path} is in no ModuleList of layers. Leave it off.")
