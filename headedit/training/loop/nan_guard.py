"""Watches a run's loss for NaN and infinity, without making the host wait for the device at every step."""

from collections.abc import Iterable

import torch
from torch import Tensor

from headedit.edits import HeadEdits


class NanGuard:
    """Records the first step whose loss was NaN or infinite, and the last good edits and weights from before it.

    ``observe`` is called with the loss of every step and stays on the device; ``check`` is called at every log.

    Fields:
        good_step: the step that the last good edits are from.

    Args:
        edits: the handle.
        others: what else is trained.
    """

    def __init__(self, edits: HeadEdits, others: Iterable[Tensor] = ()) -> None:
        self._edits, self._others = edits, list(others)
        self._bad: Tensor | None = None
        self.good_step = 0
        self._good, self._good_others = self._snapshot()

    def observe(self, loss: Tensor, step: int) -> None:
        """Records a step, counted from 1, if its loss is not finite and it is the first such step."""
        found = torch.where(torch.isfinite(loss.detach()), torch.inf, float(step))
        self._bad = found if self._bad is None else torch.minimum(self._bad, found)

    def check(self, step: int) -> int | None:
        """The first step whose loss was not finite; or None, and the current edits become the last good ones."""
        if self._bad is not None and torch.isfinite(self._bad):
            return int(self._bad)
        now, others = self._snapshot()
        if all(bool(torch.isfinite(tensor).all()) for tensor in [*now, *others]):
            self._good, self._good_others, self.good_step = now, others, step
        return None

    @torch.no_grad()
    def restore_good(self) -> None:
        """Restores the last good edits, and what is trained with them."""
        self._edits.restore(self._good)
        for other, good in zip(self._others, self._good_others, strict=True):
            other.copy_(good)

    def _snapshot(self) -> tuple[list[Tensor], list[Tensor]]:
        return self._edits.snapshot(), [other.detach().clone() for other in self._others]
