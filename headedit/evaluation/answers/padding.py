"""Batches whose padding changes no answer: of similar lengths, or of equal ones where a model cannot take padding."""

import logging
from collections.abc import Iterator, Sequence
from typing import Literal

from torch import nn

from headedit.errors import HeadEditError
from headedit.specs.registry import find_spec

logger = logging.getLogger(__name__)

LARGER = 4
"""How many times as many sequences a batch may have where they are short."""


def takes_padding(model: nn.Module, side: Literal["left", "right"]) -> bool:
    """Whether masked padding on a side changes nothing, as the spec of the model's type says; of unknown types not."""
    try:
        found = find_spec(model).padding
    except HeadEditError:
        return False
    return found in ("both", side)


def report_equal_lengths(model: nn.Module, side: str, sequences: int, batches: int) -> None:
    """Says that sequences of equal length alone share a batch, where that makes more batches."""
    logger.warning(
        "%s answers otherwise with padding on the %s, or is of a type without a spec; so only inputs of equal length "
        "share a batch: %d batches for %d inputs.",
        type(model).__name__,
        side,
        batches,
        sequences,
    )


def batches_of(
    order: Sequence[int], lengths: Sequence[int], size: int, *, equal: bool, tokens: int | None = None
) -> Iterator[list[int]]:
    """Yields indices in batches.

    Args:
        order: the indices, those of equal length next to each other where ``equal`` is set.
        lengths: length of each sequence, in tokens, by index.
        size: largest number of sequences per batch; of short ones ``LARGER`` times as many where ``tokens`` is given.
        equal: whether the sequences of a batch must have one length.
        tokens: largest number of tokens per batch, with padding; None for any.
    """
    most = size if tokens is None else LARGER * size
    batch: list[int] = []
    width = 0
    for i in order:
        wider = max(width, lengths[i])
        full = len(batch) == most or (tokens is not None and len(batch) >= size and (len(batch) + 1) * wider > tokens)
        if batch and (full or (equal and lengths[i] != lengths[batch[0]])):
            yield batch
            batch, wider = [], lengths[i]
        batch.append(i)
        width = wider
    if batch:
        yield batch
