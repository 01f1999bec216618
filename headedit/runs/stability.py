"""How far runs with different seeds agree: on the heads they choose, and in their figures."""

import itertools
import math
import statistics
from collections.abc import Sequence, Set
from dataclasses import asdict, dataclass
from typing import Any

Head = tuple[int, int]
"""(index of the site, head in it)."""


@dataclass(frozen=True, kw_only=True)
class Spread:
    """A figure over several runs.

    Fields:
        mean: of the runs.
        std: standard deviation of the runs, with n − 1.
        values: of each run.
    """

    mean: float
    std: float
    values: list[float]

    @staticmethod
    def of(values: Sequence[float]) -> "Spread":
        """The spread of some values, at least one."""
        std = statistics.stdev(values) if len(values) > 1 else 0.0
        return Spread(mean=statistics.fmean(values), std=std, values=list(values))


@dataclass(frozen=True, kw_only=True)
class Stability:
    """How far runs with different seeds agree.

    Fields:
        seeds: of the runs.
        heads: number of heads that each chose.
        jaccard: |A ∩ B| / |A ∪ B| of the chosen heads, the mean over all pairs of runs.
        chance: what random sets of the same sizes would score on average.
        validation_loss: of the runs, in nats per token; None without a validation set.
        metric: of the runs; None without one.
    """

    seeds: list[int]
    heads: list[int]
    jaccard: float
    chance: float
    validation_loss: Spread | None = None
    metric: Spread | None = None

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain data."""
        return asdict(self)

    @staticmethod
    def from_dict(data: dict[str, Any]) -> "Stability":
        """What ``to_dict`` gave."""
        spreads = {key: data[key] and Spread(**data[key]) for key in ("validation_loss", "metric")}
        return Stability(**{**data, **spreads})


def agreement(chosen: Sequence[set[Head]], total: int) -> tuple[float, float]:
    """The mean Jaccard index of all pairs of sets, and what chance gives sets of the same sizes.

    Args:
        chosen: two sets of heads or more.
        total: number of heads of the model.
    """
    pairs = list(itertools.combinations(chosen, 2))
    found = statistics.fmean(jaccard(a, b) for a, b in pairs)
    return found, statistics.fmean(expected_jaccard(len(a), len(b), total) for a, b in pairs)


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
