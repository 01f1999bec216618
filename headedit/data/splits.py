"""Draws samples and splits by a seed, as indices that a run can record, and counts what two sets have in common."""

import random
from collections.abc import Mapping, Sequence
from typing import Any

from headedit.data.records import Conversation
from headedit.errors import HeadEditError


def draw(total: int, count: int | None, held_out: Mapping[str, int | float], seed: int) -> dict[str, list[int]]:
    """Draws the indices of the training examples, as ``train``, and of the held-out sets; each in ascending order.

    The sets are drawn before the training examples, so a set of a given size is the same whatever ``count`` is.

    Args:
        total: number of records.
        count: the most training examples; None for all that are left.
        held_out: for each set a number of records, or a share below 1 of the training examples.
        seed: seed of the draw.

    Raises:
        HeadEditError: a set would be empty.
    """
    left = total - sum(int(size) for size in held_out.values())
    pool = left if count is None else min(count, left)
    sizes = {name: int(size) if size >= 1 else round(size * pool) for name, size in held_out.items()}
    sizes["train"] = pool - sum(sizes[name] for name, size in held_out.items() if size < 1)
    if min(sizes.values()) < 1:
        wanted = " and ".join(
            f"a {name} set of {size}" if size >= 1 else f"a {name} share of {size}" for name, size in held_out.items()
        )
        raise HeadEditError(
            f"{total} records cannot be split into a training set and {wanted}. Give more records, a separate "
            f"file for {' and '.join(f'{name} (--{name})' for name in held_out)}, or train without."
        )
    order = random.Random(seed).sample(range(total), total)
    drawn: dict[str, list[int]] = {}
    for name, size in sizes.items():
        drawn[name], order = sorted(order[:size]), order[size:]
    return drawn


def overlap(train: Sequence[Conversation], other: Sequence[Conversation]) -> dict[str, Any]:
    """Counts examples of another set whose prompt is also in the training set, ignoring case and white space.

    Returns:
        ``count``; ``indices`` of those examples in their source; ``same_response``, how many have the same last
        response there too.
    """
    known: dict[str, set[str]] = {}
    for example in train:
        known.setdefault(example.prompt, set()).add(example.response)
    shared = [example for example in other if example.prompt in known]
    same = sum(example.response in known[example.prompt] for example in shared)
    return {"count": len(shared), "indices": [example.index for example in shared], "same_response": same}
