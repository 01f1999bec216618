"""NIST: co-occurring n-grams weighted by how much they tell (Doddington, HLT 2002).

What is computed is what ``mteval-v13a.pl`` computes, with its tokens, lower-cased. The script in nltk takes the
best single reference for each order instead, and divides by zero where no prediction has five words.
"""

import math
from collections import Counter
from collections.abc import Sequence

from headedit.evaluation.scores.metrics.ngrams import count_ngrams
from headedit.evaluation.scores.metrics.rows import check_rows, need

_ORDER = 5
_BETA = math.log(2) / math.log(1.5) ** 2
"""Makes the penalty one half for predictions two thirds as long as the references."""


def nist(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """NIST of the corpus: Σ_n Σ info(matched n-grams) / number of n-grams, n to 5, times a length penalty.

    info(w_1 … w_n) = log2(count(w_1 … w_{n-1}) / count(w_1 … w_n)) over all references; an n-gram matches as
    often as the reference that has it most; the length of a row's references is their mean.

    Args:
        predictions: one text per row.
        references: one or more texts per row.

    Returns:
        ``nist``, from 0 up; it has no upper bound, and depends on the references of the whole set.

    Raises:
        HeadEditError: the rows cannot be scored, or sacrebleu, which has the tokeniser, is not installed.
    """
    check_rows(predictions, references)
    tokenise = need("sacrebleu.tokenizers.tokenizer_13a", "nist").Tokenizer13a()
    rows = [
        (tokenise(prediction.lower()).split(), [tokenise(reference.lower()).split() for reference in accepted])
        for prediction, accepted in zip(predictions, references, strict=True)
    ]
    counts: Counter[tuple[str, ...]] = Counter()
    for _, accepted in rows:
        for words in accepted:
            counts.update(count_ngrams(words, _ORDER))
    words_in_all = sum(len(words) for _, accepted in rows for words in accepted)

    matched, possible = [0.0] * _ORDER, [0] * _ORDER
    for predicted, accepted in rows:
        most: Counter[tuple[str, ...]] = Counter()
        for words in accepted:
            most |= count_ngrams(words, _ORDER)
        for ngram, times in (count_ngrams(predicted, _ORDER) & most).items():
            before = counts[ngram[:-1]] if len(ngram) > 1 else words_in_all
            matched[len(ngram) - 1] += times * math.log2(before / counts[ngram])
        for n in range(_ORDER):
            possible[n] += max(len(predicted) - n, 0)
    precision = sum(info / max(number, 1) for info, number in zip(matched, possible, strict=True))
    length = sum(sum(map(len, accepted)) / len(accepted) for _, accepted in rows)
    return {"nist": precision * _length_penalty(possible[0], length)}


def _length_penalty(predicted: int, expected: float) -> float:
    if predicted >= expected:
        return 1.0
    return math.exp(-_BETA * math.log(predicted / expected) ** 2) if predicted else 0.0
