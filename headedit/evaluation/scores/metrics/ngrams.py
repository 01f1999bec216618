"""Counting n-grams."""

from collections import Counter
from collections.abc import Sequence


def count_ngrams(words: Sequence[str], longest: int) -> Counter[tuple[str, ...]]:
    """How often each run of 1 to ``longest`` words occurs."""
    return Counter(
        tuple(words[start : start + n]) for n in range(1, longest + 1) for start in range(len(words) - n + 1)
    )
