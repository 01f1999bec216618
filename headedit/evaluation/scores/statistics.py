"""Uncertainty of figures: Wilson's interval of a share, McNemar's exact test, and the bootstrap for other metrics."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

_Z = 1.959963984540054  # 97.5 % quantile of the normal distribution
RESAMPLES = 300


@dataclass(frozen=True, kw_only=True)
class PairedTest:
    """The edited model against the base on the same examples.

    Fields:
        name: of the test.
        difference: headline metric of the edited model less that of the base.
        p: two-sided p-value of no difference.
        only_edited, only_base: examples that one of them alone has right; None where examples are not right or wrong.
    """

    name: str
    difference: float
    p: float
    only_edited: int | None = None
    only_base: int | None = None


def wilson(hits: int, n: int) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson 1927), which stays in 0 to 1 and is right for few examples."""
    share, z2 = hits / n, _Z * _Z
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = _Z * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    return max(0.0, centre - half), min(1.0, centre + half)


def mcnemar(edited: Sequence[bool], base: Sequence[bool]) -> PairedTest:
    """McNemar's test of paired right and wrong answers, exact: binomial on the examples on which they differ."""
    pairs = list(zip(edited, base, strict=True))
    gained, lost = pairs.count((True, False)), pairs.count((False, True))
    differing = gained + lost
    tail = sum(math.comb(differing, k) for k in range(min(gained, lost) + 1))
    return PairedTest(
        name="McNemar, exact",
        difference=(gained - lost) / len(pairs),
        p=min(1.0, tail / 2 ** (differing - 1)) if differing else 1.0,
        only_edited=gained,
        only_base=lost,
    )


def bootstrap(metric: Callable[[Sequence[int]], float], n: int, *, resamples: int = RESAMPLES) -> list[float]:
    """A metric of the whole set on sets drawn with replacement, always the same draws (Koehn 2004).

    Args:
        metric: the metric on the examples with these indices.
        n: number of examples.
        resamples: number of sets.
    """
    generator = np.random.default_rng(0)
    return [metric(generator.integers(0, n, n).tolist()) for _ in range(resamples)]


def percentiles(draws: Sequence[float]) -> tuple[float, float]:
    """The middle 95 % of draws."""
    low, high = np.percentile(draws, [2.5, 97.5])
    return float(low), float(high)


def paired_bootstrap(edited: Sequence[float], base: Sequence[float], difference: float, n: int) -> PairedTest:
    """The paired bootstrap: how often the sign of the difference turns on the same draws.

    Args:
        edited, base: the metric of each system on the same draws.
        difference: of the metric on the whole set.
        n: number of examples. All draws of few examples are alike, so p is never below 2 / 2ⁿ, the smallest p of a test
            that exchanges the two systems on any of the examples.
    """
    below = sum(a <= b for a, b in zip(edited, base, strict=True))
    above = sum(a >= b for a, b in zip(edited, base, strict=True))
    p = min(1.0, max(2 * (min(below, above) + 1) / (len(edited) + 1), 2.0 ** (1 - n)))
    return PairedTest(name=f"paired bootstrap, {len(edited)} draws", difference=difference, p=p)
