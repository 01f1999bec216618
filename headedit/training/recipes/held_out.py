"""Examples that a recipe holds out of its training set: one part, or several in turn."""

from collections.abc import Sequence

import torch

from headedit.data.batches import Encoded

Part = tuple[Sequence[Encoded], Sequence[Encoded]]
"""Training and validation examples."""


def held_out_parts(rows: Sequence[Encoded], folds: int, share: float, seed: int) -> list[Part]:
    """Pairs of training and validation examples in a random order.

    Args:
        rows: at least two examples.
        folds: number of parts that are held out in turn, at most one per example; 1 for one part.
        share: share of the examples that is held out as one part, at least one of them.
        seed: of the order.
    """
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed)).tolist()
    if folds == 1:
        held = [set(order[: _held(len(rows), share)])]
    else:
        held = [set(order[i::folds]) for i in range(folds)]
    return [([rows[i] for i in order if i not in out], [rows[i] for i in order if i in out]) for out in held]


def held_out_sizes(examples: int, folds: int, share: float) -> list[int]:
    """How many training examples each pair of ``held_out_parts`` has."""
    if folds == 1:
        return [examples - _held(examples, share)]
    return [examples - len(range(i, examples, folds)) for i in range(folds)]


def _held(examples: int, share: float) -> int:
    return max(1, round(share * examples))
