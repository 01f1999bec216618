"""Bytes of the tensors that are alive, now and at the peak: they need no values, so the meta device is enough."""

import weakref
from collections.abc import Iterable
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from headedit.training.memory_plan.value_answers import ValueAnswers


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the storage of every tensor that an operator makes, until it is freed; backward passes included.

    Args:
        held: tensors that exist anyway and do not count.
        answers: runs the operators, and answers those that read values.

    Fields:
        now: bytes that are alive.
        peak: the largest value of ``now``.
        recent_peak: the same since ``restart``.
    """

    def __init__(self, held: Iterable[Tensor] = (), *, answers: ValueAnswers) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = self.recent_peak = 0
        self._answers = answers
        self._sizes: dict[int, int] = {}
        for tensor in held:
            self._see(tensor, counts=False)

    def restart(self) -> None:
        """Starts ``recent_peak`` again, from what is alive now."""
        self.recent_peak = self.now

    def __torch_dispatch__(
        self, func: Any, types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = self._answers.run(func, args, kwargs or {})
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
        self.peak, self.recent_peak = max(self.peak, self.now), max(self.recent_peak, self.now)
        weakref.finalize(storage, self._forget, key).atexit = False

    def _forget(self, key: int) -> None:
        self.now -= self._sizes.pop(key)
