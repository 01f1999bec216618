"""A value that depends on parameters alone, computed once until one of them changes."""

from collections.abc import Callable, Iterable, Sequence
from operator import is_
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

T = TypeVar("T")

_DISTRIBUTED = torch.distributed.is_available()


class Kept(Generic[T]):
    """Keeps one value, and with it the parameters it was computed from and their versions.

    A parameter counts as changed when it is another object, has other memory or another version, which every write
    that autograd sees gives it. A write into the same memory through ``.data`` is seen by nobody; ``drop`` is for that.

    Nothing is kept where a gradient is to flow into the parameters or has done so, since fused optimisers write behind
    the version's back; nor in a process group, whose wrappers do so, too; nor while a graph is compiled or captured.
    Copies start empty.

    Fields:
        entry: what is kept; another object whenever it was computed anew, None where there is nothing.
    """

    def __init__(self) -> None:
        self.entry: tuple[_Seen, T] | None = None

    def __reduce__(self) -> "tuple[type[Kept[T]], tuple[()]]":
        return type(self), ()

    def get(self, parameters: Iterable[Tensor | None], compute: Callable[[], T]) -> T:
        """The value: the one that is kept where no parameter has changed since, a new one otherwise.

        Args:
            parameters: what it depends on; None for those that are not there.
            compute: makes a new one.
        """
        if torch.compiler.is_compiling():
            return compute()
        parameters = list(parameters)
        if self.entry is not None and self.entry[0].holds(parameters):
            return self.entry[1]
        self.drop()
        if not _may_keep([p for p in parameters if p is not None]):
            return compute()
        with torch.inference_mode(False), torch.no_grad():
            seen = _Seen(parameters)
            self.entry = seen, compute()
        return self.entry[1]

    def drop(self) -> None:
        """Forgets the value."""
        self.entry = None


class KeptTogether(Generic[T]):
    """Keeps what is made of several kept values, so that all their parameters are looked at in one go.

    It costs a pass of the interpreter through a few lists, however many values there are, where each of them by itself
    would cost as much as all. Copies start empty.
    """

    def __init__(self) -> None:
        self._entry: tuple[_Seen, list[object], T] | None = None

    def __reduce__(self) -> "tuple[type[KeptTogether[T]], tuple[()]]":
        return type(self), ()

    def get(self, kept: Sequence[Kept[Any]], parameters: list[Tensor | None], compute: Callable[[], T]) -> T:
        """What is made of the values: the one that is there where each of them still holds, a new one otherwise.

        Args:
            kept: the values.
            parameters: of all of them.
            compute: makes a new one, asking for each value.
        """
        if self._entry is not None:
            seen, entries, made = self._entry
            if _same([one.entry for one in kept], entries) and seen.holds(parameters):
                return made
        self._entry = None
        made = compute()
        entries = [one.entry for one in kept]
        if all(entry is not None for entry in entries):
            with torch.inference_mode(False), torch.no_grad():
                self._entry = _Seen(parameters), entries, made
        return made


class _Seen:
    """Parameters as they were; aliases hold their memory, so that no other tensor can come to stand at its address."""

    def __init__(self, parameters: list[Tensor | None]) -> None:
        self._parameters = parameters
        self._there = [p for p in parameters if p is not None]
        self._versions = [p._version for p in self._there]
        self._addresses = [p.data_ptr() for p in self._there]
        self._aliases = [p.detach() for p in self._there]

    def holds(self, parameters: list[Tensor | None]) -> bool:
        """Whether these are the same, unchanged: asked in every pass, so that this looks at no more than it must."""
        there = self._there
        return (
            _same(parameters, self._parameters)
            and [p._version for p in there] == self._versions
            and [p.data_ptr() for p in there] == self._addresses
            and not [p for p in there if p.grad is not None]
            and not (torch.is_grad_enabled() and [p for p in there if p.requires_grad])
            and not _written_behind(there[0])
        )


def _same(some: Sequence[object], others: Sequence[object]) -> bool:
    return len(some) == len(others) and all(map(is_, some, others))


def _may_keep(parameters: Sequence[Tensor]) -> bool:
    gradients = torch.is_grad_enabled()
    for p in parameters:
        # functional_call and FSDP put other classes in place of a Parameter
        if type(p) is not nn.Parameter or p.grad is not None or (gradients and p.requires_grad) or p.is_inference():
            return False
    return not _written_behind(parameters[0])


def _written_behind(parameter: Tensor) -> bool:
    """Whether parameters may be written behind their version's back, or a replayed graph is to see them."""
    if parameter.is_cuda and torch.cuda.is_current_stream_capturing():
        return True
    return _DISTRIBUTED and torch.distributed.is_initialized()
