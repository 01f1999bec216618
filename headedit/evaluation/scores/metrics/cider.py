"""CIDEr-D: likeness to what people wrote, by n-grams weighted by how rare they are (Vedantam et al., CVPR 2015).

The figures are those of the authors' code, whose tokeniser (Stanford's, in Java, lower-cased and without
punctuation) is followed here by a pattern: contractions come apart as in the Penn Treebank;
compounds with a hyphen, numbers and initials stay whole. Where a text has brackets or URLs the two may differ.
"""

import math
import re
from collections import Counter
from collections.abc import Sequence

from headedit.evaluation.scores.metrics.ngrams import count_ngrams
from headedit.evaluation.scores.metrics.rows import check_rows

_ORDER = 4
_SIGMA = 6.0  # of the Gaussian penalty for another length, in words
_WORD = re.compile(
    r"\w+(?=n't\b) | n't\b | '(?:s|m|d|re|ve|ll)\b"  # do n't, dog 's
    r"| \b(?:[a-z]\.){2,} | \d+(?:[.,:]\d+)+ | \w+?(?:-\w+)*(?=n't\b|\W|$) | [^\w\s.?!,:;'`\"()\[\]{}…-]",
    re.VERBOSE,
)

Vector = dict[tuple[str, ...], float]


def cider(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """CIDEr-D: 10 · mean over n = 1 … 4, references and rows of min(p, r)·r / (‖p‖‖r‖) · exp(-Δ² / 2σ²).

    p and r are the n-gram counts times log(rows / rows whose references have the n-gram), Δ is the difference of
    the two lengths in words, and σ = 6.

    Args:
        predictions: one text per row.
        references: one or more texts per row.

    Returns:
        ``cider``, 0 to 10. How rare an n-gram is comes from the references given, so figures of different sets,
        or of parts of one, cannot be compared; a single row scores 0.

    Raises:
        HeadEditError: the rows cannot be scored.
    """
    check_rows(predictions, references)
    written = [[count_ngrams(tokens(text), _ORDER) for text in accepted] for accepted in references]
    rows_with = Counter(ngram for accepted in written for ngram in set().union(*accepted))
    total = 0.0
    for prediction, accepted in zip(predictions, written, strict=True):
        predicted = count_ngrams(tokens(prediction), _ORDER)
        likeness = [_likeness(predicted, reference, rows_with, len(predictions)) for reference in accepted]
        total += sum(likeness) / len(likeness)
    return {"cider": 10 * total / len(predictions)}


def tokens(text: str) -> list[str]:
    """Lower-cased words, without punctuation: ``She doesn't.`` is ``she``, ``does``, ``n't``."""
    return _WORD.findall(text.lower().replace("’", "'"))


def _likeness(
    predicted: Counter[tuple[str, ...]],
    reference: Counter[tuple[str, ...]],
    rows_with: Counter[tuple[str, ...]],
    rows: int,
) -> float:
    """Mean over n of the clipped cosine, times the penalty for another length."""
    between = sum(n for ngram, n in predicted.items() if len(ngram) == 1)
    between -= sum(n for ngram, n in reference.items() if len(ngram) == 1)
    cosines = 0.0
    for n in range(1, _ORDER + 1):
        p, r = _weigh(predicted, n, rows_with, rows), _weigh(reference, n, rows_with, rows)
        norms = math.hypot(*p.values()) * math.hypot(*r.values())
        if norms:
            cosines += sum(min(weight, r[ngram]) * r[ngram] for ngram, weight in p.items() if ngram in r) / norms
    return cosines / _ORDER * math.exp(-(between**2) / (2 * _SIGMA**2))


def _weigh(counts: Counter[tuple[str, ...]], n: int, rows_with: Counter[tuple[str, ...]], rows: int) -> Vector:
    return {
        ngram: count * math.log(rows / max(rows_with[ngram], 1)) for ngram, count in counts.items() if len(ngram) == n
    }
