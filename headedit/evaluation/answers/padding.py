"""Batches whose padding changes no answer: of similar lengths, or of equal ones where a model cannot take padding."""

import logging
from collections.abc import Iterator, Sequence

from torch import nn

from headedit.specs.padding import takes_padding as takes_padding

logger = logging.getLogger(__name__)


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


def batches_of(order: Sequence[int], lengths: Sequence[int], size: int, *, equal: bool) -> Iterator[list[int]]:
    """Yields indices in batches.

    Args:
        order: the indices, those of equal length next to each other where ``equal`` is set.
        lengths: length of each sequence, in tokens, by index.
        size: largest number of sequences per batch.
        equal: whether the sequences of a batch must have one length.
    """
    batch: list[int] = []
    for i in order:
        if batch and (len(batch) == size or (equal and lengths[i] != lengths[batch[0]])):
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch
