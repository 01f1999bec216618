"""Batches whose padding changes no answer: of similar lengths, or of equal ones where a model cannot take padding."""

import logging

from torch import nn

from headedit.data.batches import batches_of as batches_of
from headedit.specs.padding import takes_padding as takes_padding

logger = logging.getLogger(__name__)


def report_equal_lengths(model: nn.Module, side: str, sequences: int, batches: int) -> None:
    """Warns that sequences of equal length alone share a batch, where that makes more batches."""
    logger.warning(
        "%s answers differently with padding on the %s, or is of a type without a spec; so only inputs of equal "
        "length share a batch: %d batches for %d inputs.",
        type(model).__name__,
        side,
        batches,
        sequences,
    )
