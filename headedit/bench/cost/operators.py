"""Counts of the operators that a workload calls, which other load on the machine does not affect."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

_VIEWS = ("detach", "_unsafe_view")
_ALLOCATIONS = ("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided")
_SYNCHRONISING = ("_local_scalar_dense", "nonzero", "is_nonzero", "equal", "masked_select", "unique")


@dataclass
class OperatorCount:
    """Calls of aten operators.

    Fields:
        kernels: calls that compute, by name; allocating memory is none.
        views: calls that only return a view, by name.
        large: how many kernels read or write a tensor of at least a given size.
        synchronising: how many calls make the host wait for the device.
    """

    kernels: Counter[str] = field(default_factory=Counter)
    views: Counter[str] = field(default_factory=Counter)
    large: int = 0
    synchronising: int = 0

    def __sub__(self, other: "OperatorCount") -> "OperatorCount":
        """The difference; names that this count has fewer of are negative."""
        kernels, views = Counter(self.kernels), Counter(self.views)
        kernels.subtract(other.kernels)
        views.subtract(other.views)
        return OperatorCount(
            Counter({name: n for name, n in kernels.items() if n}),
            Counter({name: n for name, n in views.items() if n}),
            self.large - other.large,
            self.synchronising - other.synchronising,
        )


def count_operators(run: Callable[[], object], *, large: int = 0) -> OperatorCount:
    """Counts the operators that a function calls, backward passes included.

    Args:
        run: the function.
        large: from how many elements a tensor counts as large.
    """
    mode = _Counting(large)
    with mode:
        run()
    return mode.count


class _Counting(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self, large: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count, self._large = OperatorCount(), large

    def __torch_dispatch__(
        self, func: Any, types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func._schema.name.rpartition("::")[2]
        if func.is_view or name in _VIEWS:
            self.count.views[name] += 1
            return result
        if name in _ALLOCATIONS:
            return result
        self.count.kernels[name] += 1
        self.count.synchronising += name in _SYNCHRONISING
        tensors = torch.utils._pytree.tree_leaves((args, kwargs, result))
        self.count.large += any(isinstance(t, Tensor) and t.numel() >= self._large for t in tensors)
        return result
