"""Scores predictions: the metrics of a task, with intervals, groups, baselines and the paired test."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import fmean

from headedit.errors import HeadEditError, suggest
from headedit.evaluation.answers.extraction import first_line
from headedit.evaluation.answers.predictions import BASE, EDITED, Prediction
from headedit.evaluation.reports.report import Baseline, Score
from headedit.evaluation.scores.metrics import METRICS, compute
from headedit.evaluation.scores.statistics import PairedTest, bootstrap, mcnemar, paired_bootstrap, percentiles, wilson
from headedit.evaluation.tasks.examples import Example
from headedit.evaluation.tasks.task import ACCURACY, MC2, Task

Answers = Sequence[str | None]

MEANS_OVER_ROWS = ("rouge", "bertscore")
"""Metrics of generated text whose figure is the mean of what each example has alone."""


def check_metrics(task: Task) -> None:
    """Raises a ``HeadEditError`` for an unknown metric, before any work is done."""
    known = {ACCURACY, MC2, *METRICS}
    for name in task.metrics:
        if name not in known:
            raise HeadEditError(f"The task '{task.name}' names the metric '{name}'.{suggest(name, known)}")
    chosen = [name for name in task.metrics if name not in (ACCURACY, MC2)]
    if chosen:
        compute(_metric_options(task, chosen), ["a b c d"], [["a b c d"]])  # says which library is missing


def hits(task: Task, examples: Sequence[Example], answers: Answers) -> list[bool]:
    """Marks which answers are right: the right label of a choice, or the first line of a reference of a free text."""
    return [
        answer is not None and _compared(task, answer) in [_compared(task, a) for a in example.answers]
        for example, answer in zip(examples, answers, strict=True)
    ]


def right_share(example: Example, scores: Sequence[float]) -> float:
    """The probability of an example's right options among all its options, in per cent, from their log-likelihoods."""
    largest = max(scores)
    weights = [math.exp(score - largest) for score in scores]
    right = sum(w for w, label in zip(weights, example.labels, strict=True) if label in example.answers)
    return 100 * right / sum(weights)


def compute_metrics(
    task: Task, examples: Sequence[Example], answers: Answers, *, headline: bool = False
) -> dict[str, float]:
    """Computes the figures of a task's metrics, or only those of its first metric."""
    names = list(task.metrics)[: 1 if headline else None]
    figures: dict[str, float] = {}
    for name in names:
        if name == ACCURACY:
            figures[ACCURACY] = sum(hits(task, examples, answers)) / len(examples)
        elif name == MC2:
            raise HeadEditError(f"{task.name}: mc2 is made of the options' likelihoods, and not of answers.")
        else:
            texts, references = [answer or "" for answer in answers], [example.answers for example in examples]
            figures |= compute(_metric_options(task, [name]), texts, references)
    return figures


def draws(task: Task, examples: Sequence[Example], predictions: Sequence[Prediction]) -> list[float]:
    """The headline on sets drawn with replacement, the same sets for every system; empty for accuracy.

    A metric that is a mean over rows is computed once per row, and any other on every set.
    """
    name = next(iter(task.metrics))
    answers = [prediction.prediction for prediction in predictions]
    everything = range(len(examples))
    if name == ACCURACY:
        return []
    if name == MC2 or name in MEANS_OVER_ROWS:
        values = _right_shares(examples, predictions) if name == MC2 else []
        values = values or [_of_rows(task, examples, answers, [row]) for row in everything]
        return bootstrap(lambda rows: fmean(values[row] for row in rows), len(examples))
    return bootstrap(lambda rows: _of_rows(task, examples, answers, rows), len(examples))


def score(task: Task, examples: Sequence[Example], predictions: Sequence[Prediction], drawn: Sequence[float]) -> Score:
    """Computes the figures of one system; ``predictions`` are those of ``examples``, in their order."""
    answers = [prediction.prediction for prediction in predictions]
    groups: dict[str, list[int]] = {}
    for i, example in enumerate(examples):
        if example.group is not None:
            groups.setdefault(example.group, []).append(i)
    shares = _right_shares(examples, predictions) if MC2 in task.metrics else []

    def headline(rows: Sequence[int]) -> float:
        return fmean(shares[row] for row in rows) if shares else _of_rows(task, examples, answers, rows)

    return Score(
        metrics={MC2: fmean(shares)} if shares else compute_metrics(task, examples, answers),
        interval=percentiles(drawn) if drawn else wilson(sum(hits(task, examples, answers)), len(examples)),
        unparsed=sum(answer is None for answer in answers),
        seconds=sum(prediction.seconds for prediction in predictions),
        tokens=sum(prediction.tokens for prediction in predictions),
        groups={name: (len(rows), headline(rows)) for name, rows in sorted(groups.items())},
    )


def constant(task: Task, examples: Sequence[Example], trained: Sequence[Example] | None = None) -> Baseline:
    """Scores always giving the most frequent answer of the examples, or of training examples.

    For ``mc2`` it is the score of options that are all equally likely.
    """
    if MC2 in task.metrics:
        equal = fmean(right_share(example, [0.0] * len(example.labels)) for example in examples)
        return Baseline(answer="every option alike", value=equal)
    given = [example.answers[0] for example in (examples if trained is None else trained)]
    ((most, _),) = Counter(_compared(task, answer) for answer in given).most_common(1)
    answer = next(answer for answer in given if _compared(task, answer) == most)
    if task.options is None:
        answer = first_line(answer)
    return Baseline(
        answer=answer, value=_first(compute_metrics(task, examples, [answer] * len(examples), headline=True))
    )


def paired_test(
    task: Task,
    examples: Sequence[Example],
    found: Mapping[str, Sequence[Prediction]],
    drawn: Mapping[str, Sequence[float]],
) -> PairedTest:
    """The paired test of the edited model against the base: McNemar's for accuracy, else the bootstrap."""
    edited, base = ([prediction.prediction for prediction in found[system]] for system in (EDITED, BASE))
    if not drawn[EDITED]:
        return mcnemar(hits(task, examples, edited), hits(task, examples, base))
    if MC2 in task.metrics:
        means = [fmean(_right_shares(examples, found[system])) for system in (EDITED, BASE)]
        return paired_bootstrap(drawn[EDITED], drawn[BASE], means[0] - means[1], len(examples))
    headlines = [_first(compute_metrics(task, examples, answers, headline=True)) for answers in (edited, base)]
    return paired_bootstrap(drawn[EDITED], drawn[BASE], headlines[0] - headlines[1], len(examples))


def _compared(task: Task, answer: str) -> str:
    """What is compared of an answer: the label of a choice, or the first line of a free text."""
    if task.options is not None:
        return answer
    return first_line(answer).casefold() if task.ignore_case else first_line(answer)


def _of_rows(task: Task, examples: Sequence[Example], answers: Answers, rows: Sequence[int]) -> float:
    return _first(compute_metrics(task, [examples[i] for i in rows], [answers[i] for i in rows], headline=True))


def _right_shares(examples: Sequence[Example], predictions: Sequence[Prediction]) -> list[float]:
    return [right_share(e, p.scores or []) for e, p in zip(examples, predictions, strict=True)]


def _first(figures: Mapping[str, float]) -> float:
    return next(iter(figures.values()))


def _metric_options(task: Task, names: Sequence[str]) -> dict[str, dict[str, object]]:
    given = task.metrics if isinstance(task.metrics, dict) else {}
    return {name: given.get(name, {}) for name in names}
