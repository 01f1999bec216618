"""How many gates are enough: the levels of a search as they are measured, and the choice among them."""

import math
from collections.abc import Callable, Mapping

from torch import Tensor

from headedit.edits import HeadEdits
from headedit.edits.support import Gate, all_gates, heads_of
from headedit.errors import HeadEditError
from headedit.pruning_path import Level, Vectors, heads_under


class Recorder:
    """Takes down the levels of a search as it reaches them.

    Args:
        edits: the edits that are searched.
        measure: gives the loss of every validation example, [examples]; None for none.
    """

    def __init__(self, edits: HeadEdits, measure: Callable[[], Tensor] | None = None) -> None:
        self._edits, self._measure = edits, measure
        self.losses: dict[int, Tensor] = {}
        self.vectors: dict[int, Vectors] = {}

    def reached(self, alive: list[Gate]) -> None:
        """Records the edits as they are, with the gates that are alive."""
        if self._measure is not None:
            self.losses[len(alive)] = self._measure()
        kept: Vectors = {}
        for i, edit in enumerate(self._edits.module):
            gates = edit.gates()
            for vector in edit.vectors:
                heads = heads_under(self._edits, alive, i, vector)
                if heads:
                    acting = gates[vector][:, None] * getattr(edit, vector)
                    kept[f"{i}.{vector}"] = acting.detach()[heads].cpu()
        self.vectors[len(alive)] = kept


def choose(losses: Mapping[int, Tensor], most: int, base: float, standard_errors: float, tolerance: float) -> int:
    """The smallest number of gates whose validation loss is as good as the best one's.

    As good: the mean of the differences from the best, example by example, is at most ``standard_errors`` standard
    errors of that mean above zero, or at most ``tolerance`` of what the best gains over ``base``.

    Args:
        losses: for each number of gates, the loss of every validation example, [examples].
        most: only numbers up to this one are looked at.
        base: mean validation loss of the unedited model.
        standard_errors: how many; 0 to go by the tolerance alone.
        tolerance: a share, 0 or more.
    """
    allowed = sorted(gates for gates in losses if gates <= most)
    best = min(allowed, key=lambda gates: losses[gates].mean().item())
    enough = tolerance * max(0.0, base - losses[best].mean().item())
    for gates in allowed:
        difference = losses[gates] - losses[best]
        if difference.mean().item() <= max(enough, standard_errors * standard_error(difference)):
            return gates
    return best


def standard_error(values: Tensor) -> float:
    """Of the mean, [examples]; 0 for a single one."""
    return values.std().item() / math.sqrt(len(values)) if len(values) > 1 else 0.0


def levels_of(order: list[Gate], sizes: list[int], losses: Mapping[int, Tensor]) -> list[Level]:
    """The levels of these sizes along an order, with what their losses say."""
    best = min(losses, key=lambda gates: losses[gates].mean().item()) if losses else None
    found = []
    for gates in sizes:
        level = Level(gates=gates, heads=len(heads_of(order[:gates])))
        if gates in losses and best is not None:
            mean, error = losses[gates].mean().item(), standard_error(losses[gates] - losses[best])
            level = Level(gates=gates, heads=level.heads, loss=mean, standard_error=error)
        found.append(level)
    return found


def allowed_by(budget: float, edits: HeadEdits) -> int:
    """How many gates a budget, a share of all, allows.

    Raises:
        HeadEditError: it is not above 0 and at most 1, or less than one gate.
    """
    check_budget(budget)
    total = len(all_gates(edits.module))
    if int(budget * total) < 1:
        raise HeadEditError(
            f"budget: {budget:g} of {total} gates is less than one gate; the smallest budget here is {1 / total:.2g}."
        )
    return int(budget * total)


def check_budget(budget: float | None) -> None:
    """Raises a HeadEditError for a budget outside (0, 1]."""
    if budget is not None and not 0 < budget <= 1:
        raise HeadEditError(f"budget: found {budget:g}, expected a share of the gates above 0 and at most 1.")
