"""How sure each head is: selection proportions over complementary halves of the examples, and what is chosen by them.

The halves are ranked elsewhere; here is the arithmetic of stability selection (Meinshausen and Bühlmann 2010; Shah and
Samworth 2013), with decoys: variables that are false by construction and compete with the others.
"""

import itertools
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, NamedTuple

from headedit.edits.gate_set import GateIndex
from headedit.errors import HeadEditError
from headedit.io import strict
from headedit.io.html import html_block, html_note, html_table
from headedit.runs.error_bounds import r_concave_bound, worst_case_bound

RATE = 0.1
"""The nominal rate of false selections where none is given."""

_GROWTH = 1.4
_EITHER = 0.9
_CHANCE = 0.01
_SHOWN = 12  # gates in a notebook


class Competitor(NamedTuple):
    """A gate, or its decoy, that is ranked."""

    gate: GateIndex
    decoy: bool = False


@dataclass(frozen=True, kw_only=True)
class GateProportion:
    """How often a gate is selected.

    Fields:
        gate: (index of the site, vector, head).
        proportion: share of the halves in which it is among the q first: its selection probability, estimated.
        chosen: whether it passes the threshold.
    """

    gate: tuple[int, str, int]
    proportion: float
    chosen: bool


@dataclass(frozen=True, kw_only=True)
class Exchange:
    """Another gate in the place of a chosen one.

    Fields:
        gate: the chosen one, (index of the site, vector, head).
        other: the one in its place.
        cost: mean rise of the loss, in nats per token.
        standard_error: of the cost, over the examples.
    """

    gate: tuple[int, str, int]
    other: tuple[int, str, int]
    cost: float
    standard_error: float

    @property
    def is_free(self) -> bool:
        """Whether it costs less than its standard error."""
        return self.cost < self.standard_error


@dataclass(frozen=True, kw_only=True)
class Selection:
    """The gates that stability selection chooses, and how many of them may be false.

    Fields:
        halves: number of halves of the examples that were ranked, two for each complementary pair.
        competitors: number of gates and decoys.
        rate: nominal rate: the largest share of false gates among the chosen ones.
        q: number of competitors selected in each half.
        threshold: π, the least proportion of a chosen gate; 1 where nothing is chosen.
        gates: those selected in some half, the most often selected first; all others have the proportion 0.
        worst_case: at most so many gates of low selection probability pass the threshold, on average; without
            assumptions.
        r_concave: the same, where the proportions' distributions are r-concave.
        decoys: number of decoys that pass the threshold.
        groups: interchangeable gates: the halves select one or the other, or an exchange is free.
        exchanges: what it costs to put the best other gate in the place of each chosen one, where it was measured.
    """

    halves: int
    competitors: int
    rate: float
    q: int
    threshold: float
    gates: list[GateProportion]
    worst_case: float
    r_concave: float
    decoys: int
    groups: list[list[tuple[int, str, int]]] = field(default_factory=list)
    exchanges: list[Exchange] = field(default_factory=list)

    def __repr__(self) -> str:
        return f"Selection({'; '.join(f'{what}: {value}' for what, value in self.rows())})"

    def _repr_html_(self) -> str:
        rows = [
            (f"site {site}", vector, head, row.proportion, "yes" if row.chosen else "")
            for row in self.gates[:_SHOWN]
            for site, vector, head in [row.gate]
        ]
        more = (
            [html_note(f"The {_SHOWN} most often selected of {len(self.gates)}.")] if len(self.gates) > _SHOWN else []
        )
        table = html_table(["site", "vector", "head", "selected", "sure"], rows, left=2)
        return html_block("Stability selection", html_table([], self.rows()), table, *more)

    @property
    def chosen(self) -> list[GateIndex]:
        """The chosen gates, the most often selected first."""
        return [GateIndex(*row.gate) for row in self.gates if row.chosen]

    @property
    def decoy_rate(self) -> float:
        """The false discovery rate that the decoys show: decoys over gates that pass, 0 where nothing does."""
        return min(1.0, self.decoys / max(1, len(self.chosen)))

    @property
    def proportions(self) -> dict[GateIndex, float]:
        """By gate; those that are missing have the proportion 0."""
        return {GateIndex(*row.gate): row.proportion for row in self.gates}

    def rows(self) -> list[tuple[str, str]]:
        """The selection in short, as (what, value) for a table."""
        count = len(self.chosen)
        if not count:
            passes = f"none at a rate of {self.rate:g}: the {self.halves} halves do not agree, or decoys do as well"
            return [("gates that are sure", passes)]
        false = f"at most {self.worst_case:.2g} expected to be false, decoys show {self.decoy_rate:.0%}"
        chosen = f"{count} in {self.threshold:.0%} of {self.halves} halves or more, {false}"
        return [("gates that are sure", chosen)]

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain data."""
        plain = asdict(self)
        for row in plain["gates"]:
            row["gate"] = list(row["gate"])
        for row in plain["exchanges"]:
            row["gate"], row["other"] = list(row["gate"]), list(row["other"])
        plain["groups"] = [[list(gate) for gate in group] for group in self.groups]
        return plain

    @staticmethod
    def from_dict(data: dict[str, Any]) -> "Selection":
        """What ``to_dict`` gave.

        Raises:
            HeadEditError: it is damaged.
        """
        return strict.build(Selection, data, "selection")


def select(orders: Sequence[Sequence[Competitor]], competitors: int, rate: float = RATE) -> Selection:
    """Chooses the gates that halves of the examples agree on.

    Of all numbers q and thresholds π at which both the worst-case bound and the number of decoys that pass are at most
    ``rate`` times the number of gates that pass, it takes those with most gates, of these the largest q, which tells
    most of the other gates, and with it the highest threshold. The bound is that of a q fixed beforehand; the choice of
    q among a few is not part of it, and is what the decoys are for.

    Args:
        orders: for every half the competitors, the most important first, at least ``largest_q`` of them; the halves of
            a complementary pair follow one another.
        competitors: number of gates and decoys.
        rate: the nominal rate.

    Raises:
        HeadEditError: there are not two halves for each pair, or the rate is out of range.
    """
    if len(orders) < 2 or len(orders) % 2:
        raise HeadEditError(f"halves: found {len(orders)}, expected an even number of 2 or more.")
    check_rate(rate)
    found: tuple[int, int, int] | None = None
    most = 0
    for q in sizes_of(competitors, rate):
        counts = Counter(itertools.chain.from_iterable(order[:q] for order in orders))
        for least in range(len(orders) // 2 + 1, len(orders) + 1):
            real, decoys = _passing(counts, least)
            allowed = rate * real
            bound = worst_case_bound(q, competitors, least / len(orders))
            if real and real >= most and bound <= allowed + 1e-12 and decoys <= allowed + 1e-12:
                found, most = (q, least, decoys), real
    q, least, decoys = found or (min(sizes_of(competitors, rate)[-1], competitors), len(orders) + 1, 0)
    counts = Counter(itertools.chain.from_iterable(order[:q] for order in orders))
    rows = [
        GateProportion(gate=(*one.gate,), proportion=count / len(orders), chosen=count >= least)
        for one, count in sorted(counts.items(), key=lambda item: (-item[1], item[0]))
        if not one.decoy
    ]
    threshold = min(1.0, least / len(orders))
    return Selection(
        halves=len(orders),
        competitors=competitors,
        rate=rate,
        q=q,
        threshold=threshold,
        gates=rows,
        worst_case=worst_case_bound(q, competitors, threshold) if found else 0.0,
        r_concave=r_concave_bound(q, competitors, threshold, len(orders) // 2) if found else 0.0,
        decoys=decoys,
        groups=_groups(orders, next((size for size in sizes_of(competitors, rate) if size > q), q)),
    )


def with_exchanges(found: Selection, exchanges: Sequence[Exchange]) -> Selection:
    """The selection with measured exchanges; the gates of those that are free join one group."""
    pairs = [(one.gate, one.other) for one in exchanges if one.is_free]
    joined = _joined([*found.groups, *map(list, pairs)])
    return replace(found, groups=joined, exchanges=list(exchanges))


def check_rate(rate: float) -> None:
    """Raises a HeadEditError if a nominal rate is not above 0 and below 1."""
    if not 0 < rate < 1:
        raise HeadEditError(f"rate: found {rate:g}, expected a share above 0 and below 1.")


def largest_q(competitors: int, rate: float = RATE) -> int:
    """The largest number of competitors that is selected in a half.

    With it the bound is just met if all of them pass the threshold 1.
    """
    return max(1, min(competitors, int(rate * competitors)))


def sizes_of(competitors: int, rate: float = RATE) -> list[int]:
    """The numbers q that are tried, the smallest first."""
    sizes, value = [1], 1.0
    while sizes[-1] < largest_q(competitors, rate):
        value = max(value * _GROWTH, value + 1)
        sizes.append(min(int(value), largest_q(competitors, rate)))
    return sizes


def _passing(counts: Counter[Competitor], least: int) -> tuple[int, int]:
    """How many gates and how many decoys were selected at least so often."""
    passing = [one.decoy for one, count in counts.items() if count >= least]
    return passing.count(False), passing.count(True)


def _groups(orders: Sequence[Sequence[Competitor]], q: int) -> list[list[tuple[int, str, int]]]:
    """Gates that are selected in each other's place: nearly always one of them, and both less often than by chance.

    Chance is that of the hypergeometric distribution, the halves in which each is selected being given.
    """
    halves = [{(*one.gate,) for one in order[:q] if not one.decoy} for order in orders]
    counts = Counter(itertools.chain.from_iterable(halves))
    common = sorted(gate for gate, count in counts.items() if 1 < count < len(halves))
    pairs = []
    for a, b in itertools.combinations(common, 2):
        both = sum(a in half and b in half for half in halves)
        either = counts[a] + counts[b] - both
        if either >= _EITHER * len(halves) and _at_most(both, counts[a], counts[b], len(halves)) <= _CHANCE:
            pairs.append([a, b])
    return _joined(pairs)


def _joined(groups: Sequence[Sequence[tuple[int, str, int]]]) -> list[list[tuple[int, str, int]]]:
    """Groups without a common gate, made of groups that may have some."""
    found: list[set[tuple[int, str, int]]] = []
    for group in groups:
        merged = set(group).union(*(other for other in found if other & set(group)))
        found = [other for other in found if not other & merged] + [merged]
    return sorted(sorted(group) for group in found)


def _at_most(both: int, first: int, second: int, total: int) -> float:
    """The probability that random sets of these sizes share at most so many of all."""
    ways = math.comb(total, second)
    return sum(math.comb(first, i) * math.comb(total - first, second - i) / ways for i in range(both + 1))
