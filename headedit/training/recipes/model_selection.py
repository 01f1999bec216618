"""Model selection: records the levels of a search, and chooses the number of gates among them."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from headedit.edits import HeadEdits
from headedit.edits.gate_set import GateIndex, all_gates
from headedit.errors import HeadEditError
from headedit.runs.pruning_path import Level, Vectors, heads_under
from headedit.training.loop.state import State

Losses = Mapping[int, Tensor]
"""By number of gates: the loss of every validation example, [examples]."""


class Recorder:
    """Records the levels of a search as it reaches them; ``Stateful``.

    Args:
        edits: the handle of the edits that are searched.
        measure: returns the loss of every validation example, [examples]; None to record no losses.

    Fields:
        losses: by number of gates, the loss of every validation example, [examples].
        vectors: by number of gates, the effective vectors of the open gates' heads.
    """

    def __init__(self, edits: HeadEdits, measure: Callable[[], Tensor] | None = None) -> None:
        self._edits, self._measure = edits, measure
        self.losses: dict[int, Tensor] = {}
        self.vectors: dict[int, Vectors] = {}

    def record(self, alive: list[GateIndex]) -> None:
        """Records a level: the current edits, of which these gates are not closed for good."""
        if self._measure is not None:
            self.losses[len(alive)] = self._measure()
        kept: Vectors = {}
        for i, edit in enumerate(self._edits.module):
            gates = edit.gate_values()
            for vector in edit.vectors:
                heads = heads_under(self._edits, alive, i, vector)
                if heads:
                    acting = gates[vector][:, None] * edit.vectors[vector]
                    kept[f"{i}.{vector}"] = acting.detach()[heads].cpu()
        self.vectors[len(alive)] = kept

    def state_dict(self) -> State:
        """The levels recorded so far."""
        tensors = {f"loss/{gates}": losses for gates, losses in self.losses.items()}
        tensors |= {f"vector/{n}/{name}": rows for n, kept in self.vectors.items() for name, rows in kept.items()}
        return State({"levels": list(self.vectors)}, tensors)

    def load_state_dict(self, state: State) -> None:
        """Restores the levels that were recorded."""
        self.losses, self.vectors = {}, {level: {} for level in state.plain["levels"]}
        for key, tensor in state.tensors.items():
            kind, level, *name = key.split("/")
            if kind == "loss":
                self.losses[int(level)] = tensor
            else:
                self.vectors[int(level)][name[0]] = tensor


@dataclass(frozen=True)
class Search:
    """The levels of a search, by number of gates.

    Fields:
        orders: the gates of each level, the most important first.
        vectors: the effective vectors of their heads.
        losses: the loss of every validation example, [examples]; empty without validation.
    """

    orders: dict[int, list[GateIndex]]
    vectors: dict[int, Vectors]
    losses: dict[int, Tensor]

    def better(self, other: "Search") -> "Search":
        """For every number of gates, the level of this or the other search with the lower mean validation loss."""
        orders, vectors, losses = dict(self.orders), dict(self.vectors), dict(self.losses)
        for gates, found in other.losses.items():
            if gates not in losses or found.mean() < losses[gates].mean():
                orders[gates], vectors[gates], losses[gates] = other.orders[gates], other.vectors[gates], found
        return Search(orders, vectors, losses)


def concatenate(losses: Sequence[Losses]) -> dict[int, Tensor]:
    """The losses measured on each of several folds as one tensor, [examples], by number of gates."""
    return {gates: torch.cat([found[gates] for found in losses]) for gates in losses[0]}


def choose(losses: Losses, most: int, base: float, standard_errors: float, tolerance: float) -> int:
    """The smallest number of gates whose validation loss is as good as the best.

    It is as good if the mean difference from the best, example by example, is at most ``standard_errors`` standard
    errors of that mean, or at most the share ``tolerance`` of the best one's gain over ``base``.

    Args:
        losses: by number of gates, the loss of every validation example, [examples].
        most: the largest number of gates to consider.
        base: mean validation loss of the unedited model, in nats per token.
        standard_errors: number of standard errors; 0 to apply the tolerance alone.
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
    """Standard error of the mean of values, [examples]; 0 for a single value."""
    return values.std().item() / math.sqrt(len(values)) if len(values) > 1 else 0.0


def levels_of(orders: Mapping[int, list[GateIndex]], vectors: Mapping[int, Vectors], losses: Losses) -> list[Level]:
    """The levels of a pruning path, the largest first, with mean loss and standard error.

    Args:
        orders: by number of gates, the gates, the most important first.
        vectors: by number of gates, the effective vectors of their heads.
        losses: by number of gates, the loss of every validation example, [examples]; empty without validation.
    """
    best = min(losses, key=lambda gates: losses[gates].mean().item()) if losses else None
    found = []
    for gates in sorted(orders, reverse=True):
        mean = error = None
        if best is not None and gates in losses:
            mean, error = losses[gates].mean().item(), standard_error(losses[gates] - losses[best])
        found.append(Level(order=orders[gates], vectors=vectors[gates], loss=mean, standard_error=error))
    return found


def allowed_by(budget: float, edits: HeadEdits) -> int:
    """The number of gates that a budget, a share of all gates, allows.

    Raises:
        HeadEditError: the budget is not above 0 and at most 1, or is less than one gate.
    """
    check_budget(budget)
    total = len(all_gates(edits.module))
    if int(budget * total) < 1:
        raise HeadEditError(
            f"budget: {budget:g} of {total} gates is less than one gate; the smallest budget here is {1 / total:.2g}."
        )
    return int(budget * total)


def check_budget(budget: float | None) -> None:
    """Raises a HeadEditError if a budget is not above 0 and at most 1."""
    if budget is not None and not 0 < budget <= 1:
        raise HeadEditError(f"budget: found {budget:g}, expected a share of the gates above 0 and at most 1.")
