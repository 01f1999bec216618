"""Watches a run's loss for NaN and infinity, without making the host wait for the device at every step."""

import torch
from torch import Tensor

from headedit.edits import HeadEdits


class FiniteWatch:
    """Remembers the first step whose loss was not finite, and the last edits from before it.

    ``observe`` is called with the loss of every step and stays on the device; ``check`` is called now and then.
    """

    def __init__(self, edits: HeadEdits) -> None:
        self._edits = edits
        self._bad: Tensor | None = None
        self.good_step = 0
        self._good = self._edits.snapshot()

    def observe(self, loss: Tensor, step: int) -> None:
        """Notes a step, counted from 1, whose loss is not finite; only the first is kept."""
        found = torch.where(torch.isfinite(loss.detach()), torch.inf, float(step))
        self._bad = found if self._bad is None else torch.minimum(self._bad, found)

    def check(self, step: int) -> int | None:
        """The first step with a loss that was not finite, or None; then the edits as they are become the good ones."""
        if self._bad is not None and torch.isfinite(self._bad):
            return int(self._bad)
        now = self._edits.snapshot()
        if all(bool(torch.isfinite(tensor).all()) for tensor in now):
            self._good, self.good_step = now, step
        return None

    def restore(self) -> None:
        """Puts the last good edits back."""
        self._edits.restore(self._good)
