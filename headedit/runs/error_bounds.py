"""Bounds on the expected number of falsely selected variables in stability selection.

A variable that is selected by chance in half of the examples has a low selection probability there, at most θ = q/p
where q of p are selected. What is bounded is how many such variables pass the threshold.

Meinshausen, Bühlmann, "Stability selection", JRSS B 72 (2010), theorem 1; Shah, Samworth, "Variable selection with
error control: another look at stability selection", JRSS B 75 (2013), theorem 1, and appendix A.4 for the bound under
r-concavity, with complementary pairs.
"""

import math

import numpy

from headedit.errors import HeadEditError

_SMALLEST, _LARGEST = 1e-5, 1e5
_STEPS = 50
_GOLDEN = (math.sqrt(5) - 1) / 2


def worst_case_bound(q: float, p: int, threshold: float) -> float:
    """At most q² / ((2π − 1)·p) variables of low selection probability pass the threshold π, on average.

    Shah and Samworth prove it for complementary pairs without assumptions on the variables or on the way of selection;
    Meinshausen and Bühlmann for halves drawn alone, where variables without an effect are exchangeable.

    Args:
        q: number of variables selected in each half.
        p: number of variables.
        threshold: π, above 1/2.

    Raises:
        HeadEditError: a number is out of range.
    """
    _check(q, p, threshold)
    return q * q / ((2 * threshold - 1) * p)


def r_concave_bound(q: float, p: int, threshold: float, pairs: int) -> float:
    """The bound of complementary pairs where the distributions of the selection proportions are r-concave.

    It is min(D(θ², 2π − 1; B, −1/2), D(θ, π; 2B, −1/4)) · p, and never above the worst case's.

    Args:
        q: number of variables selected in each half.
        p: number of variables.
        threshold: π, above 1/2.
        pairs: B, number of complementary pairs.

    Raises:
        HeadEditError: a number is out of range.
    """
    _check(q, p, threshold)
    if pairs < 1:
        raise HeadEditError(f"pairs: found {pairs}, expected 1 or more.")
    needed = math.ceil(round(2 * pairs * threshold, 9))
    both = largest_tail((q / p) ** 2, needed - pairs, pairs, -1 / 2)
    either = largest_tail(q / p, needed, 2 * pairs, -1 / 4)
    return min(worst_case_bound(q, p, threshold), p * min(both, either))


def largest_tail(mean: float, least: int, steps: int, r: float) -> float:
    """D: the largest P(X ≥ least/steps) of an r-concave distribution on 0, 1/steps, ..., 1 with a mean of at most this.

    The mass of the extreme distribution is proportional to (a + i)^(1/r) at i = 0, ..., k, with what is left at k + 1.

    Args:
        mean: η, above 0.
        least: the tail begins there, in steps.
        steps: number of steps from 0 to 1.
        r: of r-concavity, below 0.

    Returns:
        1 where the tail begins below about twice the mean, for which nothing is known.
    """
    center = mean * steps
    first = math.ceil(round(2 * center, 9)) + 1
    if least < first or first >= steps:
        return 1.0
    found, upper = 0.0, _solve(max(first, least - 1), center, 1 / r)
    for k in range(max(first, least - 1), steps):
        lower = _solve(k + 1, center, 1 / r)
        found, upper = max(found, _best_tail(k, center, least, 1 / r, lower, upper)), lower
    return min(1.0, found)


def _solve(k: int, center: float, s: float) -> float:
    """The a at which the masses (a + i)^s, i = 0, ..., k, have this mean; it grows with a."""
    i = numpy.arange(k + 1)
    low, high = math.log(_SMALLEST), math.log(_LARGEST)
    for _ in range(_STEPS):
        middle = (low + high) / 2
        mass = _mass(math.exp(middle), i, s)
        if (i * mass).sum() / mass.sum() < center:
            low = middle
        else:
            high = middle
    return math.exp((low + high) / 2)


def _best_tail(k: int, center: float, least: int, s: float, lower: float, upper: float) -> float:
    """The largest tail over a between two numbers, by golden section in log a."""
    i = numpy.arange(k + 1)

    def tail(log_a: float) -> float:
        mass = _mass(math.exp(log_a), i, s)
        return float(1 - (k + 1 - center) * mass[:least].sum() / ((k + 1 - i) * mass).sum())

    low, high = math.log(lower), math.log(upper)
    ends = max(tail(low), tail(high))
    for _ in range(_STEPS):
        left, right = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
        if tail(left) < tail(right):
            low = left
        else:
            high = right
    return max(ends, tail((low + high) / 2))


def _mass(a: float, i: "numpy.typing.NDArray[numpy.int64]", s: float) -> "numpy.typing.NDArray[numpy.float64]":
    """(a + i)^s as a share of the first, which does not overflow."""
    mass: numpy.typing.NDArray[numpy.float64] = (1 + i / a) ** s
    return mass


def _check(q: float, p: int, threshold: float) -> None:
    if not 0 < q <= p:
        raise HeadEditError(f"q: found {q:g}, expected more than 0 and at most the number of variables, {p}.")
    if not 0.5 < threshold <= 1:
        raise HeadEditError(f"threshold: found {threshold:g}, expected more than 0.5 and at most 1.")
