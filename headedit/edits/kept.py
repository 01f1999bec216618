"""A value that depends on parameters alone, computed once until one of them changes."""

from collections.abc import Callable, Sequence
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
        self._entry: tuple[list[_Seen], T] | None = None

    def __reduce__(self) -> "tuple[type[Kept[T]], tuple[()]]":
        return type(self), ()

    def get(self, parameters: Sequence[Tensor], compute: Callable[[], T]) -> T:
        """The value: the one that is kept where no parameter has changed since, a new one otherwise."""
        if torch.compiler.is_compiling():
            return compute()
        if not _may_keep(parameters):
            self.drop()
            return compute()
        if self._entry is None or not _unchanged(self._entry[0], parameters):
            with torch.inference_mode(False), torch.no_grad():
                self._entry = [_Seen(p, p._version, p.data_ptr(), p.detach()) for p in parameters], compute()
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


def _unchanged(seen: list[_Seen], parameters: Sequence[Tensor]) -> bool:
    if len(seen) != len(parameters):
        return False
    for (then, version, address, _), now in zip(seen, parameters, strict=True):
        if now is not then or now._version != version or now.data_ptr() != address:
            return False
    return True


def _may_keep(parameters: Sequence[Tensor]) -> bool:
    gradients = torch.is_grad_enabled()
    for p in parameters:
        # functional_call and FSDP put other classes in place of a Parameter
        if type(p) is not nn.Parameter or p.grad is not None or (gradients and p.requires_grad) or p.is_inference():
            return False
    if parameters[0].is_cuda and torch.cuda.is_current_stream_capturing():
        return False
    return not (torch.distributed.is_available() and torch.distributed.is_initialized())
