"""BLEU and chrF by sacrebleu, ROUGE by rouge-score: overlap of words or characters with the references.

Sources: Papineni et al. (ACL 2002) in the form of Post (WMT 2018); Popović (WMT 2015 and 2017); Lin (2004).
"""

from collections.abc import Sequence
from itertools import zip_longest

from headedit.evaluation.scores.metrics.rows import check_rows, need

_ROUGE = ("rouge1", "rouge2", "rougeL", "rougeLsum")


def bleu(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """Corpus BLEU as sacrebleu has it: 13a tokens, cased, the closest reference for the length penalty.

    Args:
        predictions: one text per row.
        references: one or more texts per row.

    Returns:
        ``bleu``, 0 to 100.

    Raises:
        HeadEditError: the rows cannot be scored, or sacrebleu is not installed.
    """
    check_rows(predictions, references)
    scorer = need("sacrebleu", "bleu").BLEU(force=True)
    return {"bleu": float(scorer.corpus_score(list(predictions), _streams(references)).score)}


def chrf(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """Corpus chrF, chrF+ and chrF++: F2 of 1 to 6 characters in a row, with no words, words, and also pairs of words.

    Args:
        predictions: one text per row.
        references: one or more texts per row; the best of a row counts.

    Returns:
        ``chrf``, ``chrf+`` and ``chrf++``, 0 to 100.

    Raises:
        HeadEditError: the rows cannot be scored, or sacrebleu is not installed.
    """
    check_rows(predictions, references)
    sacrebleu = need("sacrebleu", "chrf")
    streams = _streams(references)
    return {
        "chrf" + "+" * order: float(sacrebleu.CHRF(word_order=order).corpus_score(list(predictions), streams).score)
        for order in range(3)
    }


def rouge(
    predictions: Sequence[str],
    references: Sequence[Sequence[str]],
    *,
    stemmer: bool = True,
    jackknife: bool = True,
) -> dict[str, float]:
    """F1 of ROUGE-1, -2, -L and -Lsum, the mean over rows; the settings of the GEM benchmark.

    Args:
        predictions: one text per row; for ROUGE-Lsum one sentence per line.
        references: one or more texts per row.
        stemmer: compare the stems of words of more than three letters (Porter).
        jackknife: with several references, the mean over leaving one of them out of the best of the rest
            (Lin 2004, section 2.1); otherwise the best of all.

    Returns:
        ``rouge1``, ``rouge2``, ``rougeL`` and ``rougeLsum``, 0 to 100.

    Raises:
        HeadEditError: the rows cannot be scored, or rouge-score is not installed.
    """
    check_rows(predictions, references)
    scorer = need("rouge_score.rouge_scorer", "rouge").RougeScorer(list(_ROUGE), use_stemmer=stemmer)
    totals = dict.fromkeys(_ROUGE, 0.0)
    for prediction, accepted in zip(predictions, references, strict=True):
        scores = [scorer.score(reference, prediction) for reference in accepted]
        for name in _ROUGE:
            totals[name] += _of_several([score[name].fmeasure for score in scores], jackknife)
    return {name: 100 * total / len(predictions) for name, total in totals.items()}


def _of_several(scores: Sequence[float], jackknife: bool) -> float:
    """The best score; jackknifed, the second best takes its place in the one set that leaves it out."""
    best, *others = sorted(scores, reverse=True)
    if not jackknife or not others:
        return best
    return ((len(scores) - 1) * best + others[0]) / len(scores)


def _streams(references: Sequence[Sequence[str]]) -> list[list[str | None]]:
    """The first reference of every row, the second of every row, …; None where a row has fewer."""
    return [list(stream) for stream in zip_longest(*references)]
