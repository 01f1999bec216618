"""Metrics of generated text: predictions against one or more references.

Each takes ``(predictions, references)``, a text and a list of texts per row, and gives its figures by name.

>>> from headedit.evaluation.scores.metrics import compute
>>> figures = compute(["bleu"], ["a dog runs home", "cats"], [["a dog runs home"], ["cats", "the cats"]])
>>> round(figures["bleu"], 1)
100.0
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from headedit.errors import HeadEditError, suggest
from headedit.evaluation.scores.metrics.bertscore import bertscore
from headedit.evaluation.scores.metrics.cider import cider
from headedit.evaluation.scores.metrics.nist import nist
from headedit.evaluation.scores.metrics.overlap import bleu, chrf, rouge

METRICS: dict[str, Callable[..., dict[str, float]]] = {
    "bleu": bleu,
    "chrf": chrf,
    "rouge": rouge,
    "nist": nist,
    "cider": cider,
    "bertscore": bertscore,
}
"""Metrics by name: called with predictions and references, and with their own options by keyword."""


def compute(
    metrics: Iterable[str] | Mapping[str, Mapping[str, Any]],
    predictions: Sequence[str],
    references: Sequence[Sequence[str]],
) -> dict[str, float]:
    """Computes the figures of several metrics.

    Args:
        metrics: names in ``METRICS``, or a mapping of names to options: ``{"bertscore": {"model": "./encoder"}}``.
        predictions: one text per row.
        references: one or more texts per row; rows may have different numbers of them.

    Raises:
        HeadEditError: a metric or an option is not known, its library is not installed, or a row cannot be scored.
    """
    wanted = metrics if isinstance(metrics, Mapping) else {name: {} for name in metrics}
    for name, options in wanted.items():
        if name not in METRICS:
            raise HeadEditError(f"There is no metric '{name}'.{suggest(name, METRICS)}")
        known = set(METRICS[name].__kwdefaults__ or ())
        for option in options:
            if option not in known:
                raise HeadEditError(f"The metric '{name}' has no option '{option}'.{suggest(option, known)}")
    return {
        figure: value
        for name, options in wanted.items()
        for figure, value in METRICS[name](predictions, references, **options).items()
    }


__all__ = ["METRICS", "bertscore", "bleu", "chrf", "cider", "compute", "nist", "rouge"]
