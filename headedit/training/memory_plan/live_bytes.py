"""Bytes of the tensors that are alive, now and at most: they need no values, so the meta device is enough."""

import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the storage of every tensor that an operator makes, until it is freed; backward passes included.

    A tensor without values is asked for one now and then: whether all of a mask is true, so that there is a shorter
    way. The answer is ``answer``.

    Args:
        held: tensors that are there anyway and do not count.
        answer: the value of what is read off a tensor on the meta device.

    Fields:
        now, most: bytes.
        since: the most since ``restart``.
    """

    def __init__(self, held: Iterable[Tensor] = (), *, answer: bool = True) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.most = self.since = 0
        self._answer = answer
        self._sizes: dict[int, int] = {}
        for tensor in held:
            self._see(tensor, counts=False)

    def restart(self) -> None:
        """Begins anew to look for the most, in ``since``."""
        self.since = self.now

    def __torch_dispatch__(
        self, func: Any, types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default and args[0].is_meta:
            return self._answer
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._see(leaf, counts=True)
        return result

    def _see(self, tensor: Tensor, *, counts: bool) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._sizes:
            return
        self._sizes[key] = size = storage.nbytes() if counts else 0
        self.now += size
        self.most, self.since = max(self.most, self.now), max(self.since, self.now)
        weakref.finalize(storage, self._forget, key).atexit = False

    def _forget(self, key: int) -> None:
        self.now -= self._sizes.pop(key)
