"""A value that depends on parameters alone, computed once until one of them changes."""

from collections.abc import Callable, Collection, Sequence
from typing import Generic, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

T = TypeVar("T")


class Kept(Generic[T]):
    """Keeps one value, and with it the parameters it was computed from and their versions.

    A parameter counts as changed when it is another object, has other memory or another version, which every write
    that autograd sees gives it. A write into the same memory through ``.data`` is seen by nobody; ``drop`` is for that.

    Nothing is kept where a gradient is to flow into the parameters or has done so, since fused optimisers write behind
    the version's back; nor in a process group, whose wrappers do so, too; nor while a graph is compiled or captured.
    Copies start empty.
    """

    def __init__(self) -> None:
        self._entry: tuple[list[_Seen | None], T] | None = None

    def __reduce__(self) -> "tuple[type[Kept[T]], tuple[()]]":
        return type(self), ()

    def get(self, parameters: Collection[Tensor | None], compute: Callable[[], T]) -> T:
        """The value: the one that is kept where no parameter has changed since, a new one otherwise.

        Args:
            parameters: what it depends on; None for those that are not there.
            compute: makes a new one.
        """
        if torch.compiler.is_compiling():
            return compute()
        if self._entry is not None and _unchanged(self._entry[0], parameters):
            return self._entry[1]
        self.drop()
        if not _may_keep([p for p in parameters if p is not None]):
            return compute()
        with torch.inference_mode(False), torch.no_grad():
            seen = [None if p is None else _Seen(p, p._version, p.data_ptr(), p.detach()) for p in parameters]
            self._entry = seen, compute()
        return self._entry[1]

    def drop(self) -> None:
        """Forgets the value."""
        self._entry = None


class _Seen(NamedTuple):
    """A parameter as it was; ``alias`` holds its memory, so that no other tensor can come to stand at its address."""

    parameter: Tensor
    version: int
    address: int
    alias: Tensor


def _unchanged(seen: list[_Seen | None], parameters: Collection[Tensor | None]) -> bool:
    """Whether the value still holds: in every pass, so that this looks at no more than it must."""
    gradients, first = torch.is_grad_enabled(), None
    for was, now in zip(seen, parameters, strict=True):
        if was is None or now is None:
            if was or now is not None:
                return False
            continue
        first, version, address, _ = was
        if now is not first or now._version != version or now.data_ptr() != address or now.grad is not None:
            return False
        if gradients and now.requires_grad:
            return False
    return first is not None and not _written_behind(first)


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
    return torch.distributed.is_available() and torch.distributed.is_initialized()
