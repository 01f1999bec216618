"""Caches of keys and values alone, whose rows can be chosen and repeated, and when two ways give the same values."""

import copy
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

T = TypeVar("T")

_PLAIN_LAYERS = (DynamicLayer, DynamicSlidingWindowLayer)
_TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-8}
"""Nats that a log-likelihood may differ by for each nat of it, at least one; 0.02 in 16 bits."""


class Checked:
    """A faster way to read a model, used for as long as its first result is seen to be right.

    Fields:
        works: whether the model can be read this way; None before the first result.
    """

    def __init__(self, possible: bool) -> None:
        self.works: bool | None = None if possible else False

    def tried(self, run: Callable[[], T | None], is_right: Callable[[T], bool]) -> T | None:
        """What the faster way gives; None where it cannot be used, and the plain way is to be.

        Args:
            run: the faster way, which gives None where it sees that it cannot be used.
            is_right: compares the first result with the plain way.
        """
        if self.works is False:
            return None
        try:
            found = run()
        except torch.OutOfMemoryError:
            raise
        except Exception:  # whatever a model raises for a cache that it cannot go on from
            if self.works:
                raise
            found = None
        if self.works is None:
            self.works = found is not None and is_right(found)
        return found if self.works else None


def is_plain(cache: Any) -> bool:
    """Whether a cache holds the keys and values of each token and nothing else."""
    return type(cache) is DynamicCache and all(type(layer) in _PLAIN_LAYERS for layer in cache.layers)


def selected(cache: Any, rows: Tensor) -> Any:
    """A copy of a plain cache with chosen rows, perhaps repeated, which leaves the cache as it is."""
    copied = copy.copy(cache)
    copied.layers = [copy.copy(layer) for layer in cache.layers]
    copied.batch_select_indices(rows)
    return copied


def agree(found: float, expected: float, dtype: torch.dtype) -> bool:
    """Whether two log-likelihoods are the same within the rounding of logits of a dtype; not where one is NaN."""
    return abs(found - expected) <= _TOLERANCE.get(dtype, 0.02) * max(1.0, abs(expected))
