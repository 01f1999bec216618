"""How much sets of chosen heads have in common, and what chance gives sets of the same sizes."""

import math
from collections.abc import Set
from typing import Any


def jaccard(a: Set[Any], b: Set[Any]) -> float:
    """|A ∩ B| / |A ∪ B|; 1 for two empty sets."""
    return len(a & b) / len(a | b) if a | b else 1.0


def expected_jaccard(a: int, b: int, total: int) -> float:
    """The mean Jaccard index of two random sets of a and b heads out of ``total``.

    The intersection is hypergeometric; the mean runs over its distribution.
    """
    if not a + b:
        return 1.0
    ways = math.comb(total, b)
    shared = range(max(0, a + b - total), min(a, b) + 1)
    return sum(math.comb(a, i) * math.comb(total - a, b - i) / ways * i / (a + b - i) for i in shared)
