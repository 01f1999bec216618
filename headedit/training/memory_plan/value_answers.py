"""What an operator that reads values is answered where tensors have none."""

from collections.abc import Sequence
from math import ceil
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

_ATEN = torch.ops.aten
_SAME_VALUES = {
    _ATEN._to_copy.default,
    _ATEN._unsafe_view.default,
    _ATEN.alias.default,
    _ATEN.clone.default,
    _ATEN.detach.default,
    _ATEN.expand.default,
    _ATEN.index.Tensor,
    _ATEN.permute.default,
    _ATEN.select.int,
    _ATEN.slice.Tensor,
    _ATEN.squeeze.dim,
    _ATEN.transpose.int,
    _ATEN.unsqueeze.default,
    _ATEN.view.default,
}


class ValueAnswers:
    """Runs operators on the meta device, and answers those that depend on the values of a tensor.

    A model asks for values now and then: whether all of a mask is true, so that there is a shorter way, or which tokens
    go to which expert. The answers follow from the mean of the tensor that is asked about, where it is known: that of a
    one-hot vector is 1 / its length, so each expert gets an equal share of the tokens. A mask of which nothing is known
    is taken to be true everywhere.

    Args:
        scalar: the answer to a question for a single value of which nothing is known.
    """

    def __init__(self, *, scalar: bool = True) -> None:
        self._scalar = scalar
        self._means: Any = WeakTensorKeyDictionary()

    def run(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The result of an operator of ``torch.ops.aten``."""
        first = args[0] if args else None
        if isinstance(first, Tensor) and first.is_meta:
            if func is _ATEN._local_scalar_dense.default:
                return bool(round(self._means.get(first, self._scalar)))
            if func is _ATEN.nonzero.default:
                return first.new_empty((self._trues(first), first.dim()), dtype=torch.long)
            if func is _ATEN._to_copy.default and kwargs.get("device") == torch.device("cpu"):  # to be read as a list
                return torch.full(
                    first.shape, round(self._means.get(first, 1.0)), dtype=kwargs.get("dtype", first.dtype)
                )
            if func is _ATEN.split_with_sizes.default:
                args = _fitting(*args, **kwargs)
                kwargs = {}
            elif len(args) > 1 and isinstance(args[1], list | tuple) and any(map(_is_mask, args[1])):
                args = (first, [each for index in args[1] for each in self._indices(index)], *args[2:])
        result = func(*args, **kwargs)
        if isinstance(result, Tensor) and (mean := self._mean(func, args, result)) is not None:
            self._means[result] = mean
        return result

    def _mean(self, func: Any, args: tuple[Any, ...], result: Tensor) -> float | None:
        """The mean of a result; None where it is unknown."""
        first: Any = args[0] if args else None
        if func is _ATEN.ones.default:
            return 1.0
        if func is _ATEN.cat.default and all(tensor in self._means for tensor in first):
            return float(sum(self._means[t] * t.numel() for t in first) / result.numel())
        if not isinstance(first, Tensor):
            return None
        if func is _ATEN.eq.Tensor and first is args[1]:  # no value is NaN
            return 1.0
        if func is _ATEN.eq.Tensor and result.numel() > first.numel():  # a number next to all that it may be: one-hot
            return first.numel() / result.numel()
        if func is _ATEN.eq.Scalar and first.dim() == 0:
            return float(self._means.get(first) == args[1])
        if func is _ATEN.scatter.value:
            return float(args[2].numel() * args[3] / result.numel())
        if func in (_ATEN.bitwise_not.default, _ATEN.logical_not.default):
            known = self._means.setdefault(first, 0.5)  # and so a mask and its complement make one whole
            return 1.0 - float(known)
        if first not in self._means:
            return None
        if func in (_ATEN._is_all_true.default, _ATEN.all.default, _ATEN.all.dim):
            return float(self._means[first] == 1)
        if func in (_ATEN.sum.default, _ATEN.sum.dim_IntList):
            return float(self._means[first] * first.numel() / result.numel())
        return float(self._means[first]) if func in _SAME_VALUES else None

    def _trues(self, mask: Tensor) -> int:
        return ceil(float(self._means.get(mask, 1.0)) * mask.numel())

    def _indices(self, index: Any) -> list[Any]:
        """An index, or for a mask the indices of what it chooses, one for each of its dimensions."""
        if not _is_mask(index):
            return [index]
        return [index.new_empty(self._trues(index), dtype=torch.long) for _ in range(index.dim())]


def _is_mask(index: Any) -> bool:
    return isinstance(index, Tensor) and index.is_meta and index.dtype in (torch.bool, torch.uint8)


def _fitting(tensor: Tensor, sizes: Sequence[int], dim: int = 0) -> tuple[Tensor, Sequence[int], int]:
    """The arguments of a split, with even sizes where those that were read as a list do not add up."""
    size = tensor.shape[dim]
    if sum(sizes) != size:
        least, more = divmod(size, len(sizes))
        sizes = [least + (i < more) for i in range(len(sizes))]
    return tensor, sizes, dim
