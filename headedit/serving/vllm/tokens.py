"""The slot of each token of a pass, in a tensor that compiled and captured graphs read."""

from typing import Any

import numpy
import torch


class TokenSlots:
    """The slot of each token of a pass; 0, the identity, for tokens that fill up a captured graph.

    Args:
        most: the largest number of tokens of a pass.
        device: of the model.

    Fields:
        on_device: the slots, int64 [most], at one address.
    """

    def __init__(self, most: int, device: torch.device) -> None:
        self.on_device = torch.zeros(most, dtype=torch.int64, device=device)
        self._written = numpy.zeros(0, dtype=numpy.int64)

    def write(self, slots: Any) -> None:
        """Sets the slots of the tokens of the next pass.

        Args:
            slots: an array of int64, [tokens].
        """
        before = len(self._written)
        if before == len(slots) and bool((self._written == slots).all()):
            return
        self._written = slots
        padded = numpy.zeros(max(before, len(slots)), dtype=numpy.int64)
        padded[: len(slots)] = slots
        values = torch.from_numpy(padded)
        if self.on_device.is_cuda:
            values = values.pin_memory()  # new in each pass, so that a copy under way is not overwritten
        self.on_device[: len(padded)].copy_(values, non_blocking=True)

    def write_none(self) -> None:
        """Sets the identity for all tokens of the next pass."""
        if len(self._written):
            self.write(numpy.zeros(0, dtype=numpy.int64))
