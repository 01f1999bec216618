"""Scores predictions: the metrics of a task, with intervals, groups, baselines and the paired test."""

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
from headedit.evaluation.tasks.task import ACCURACY, Task

Answers = Sequence[str | None]

_MEANS_OVER_ROWS = ("rouge", "bertscore")


def check_metrics(task: Task) -> None:
    """Raises a ``HeadEditError`` for an unknown metric, before any work is done."""
    known = {ACCURACY, *METRICS}
    for name in task.metrics:
        if name not in known:
            raise HeadEditError(f"The task '{task.name}' names the metric '{name}'.{suggest(name, known)}")
    chosen = [name for name in task.metrics if name != ACCURACY]
    if chosen:
        compute(_metric_options(task, chosen), ["a b c d"], [["a b c d"]])  # says which library is missing


def hits(examples: Sequence[Example], answers: Answers) -> list[bool]:
    """Marks which answers are right: the right label, or the first line of a reference."""
    return [
        answer is not None and answer in [first_line(a) for a in example.answers]
        for example, answer in zip(examples, answers, strict=True)
    ]


def compute_metrics(
    task: Task, examples: Sequence[Example], answers: Answers, *, headline: bool = False
) -> dict[str, float]:
    """Computes the figures of a task's metrics, or only those of its first metric."""
    names = list(task.metrics)[: 1 if headline else None]
    figures: dict[str, float] = {}
    for name in names:
        if name == ACCURACY:
            figures[ACCURACY] = sum(hits(examples, answers)) / len(examples)
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
    if name in _MEANS_OVER_ROWS:
        values = [_of_rows(task, examples, answers, [row]) for row in everything]
        return bootstrap(lambda rows: fmean(values[row] for row in rows), len(examples))
    return bootstrap(lambda rows: _of_rows(task, examples, answers, rows), len(examples))


def score(task: Task, examples: Sequence[Example], predictions: Sequence[Prediction], drawn: Sequence[float]) -> Score:
    """Computes the figures of one system; ``predictions`` are those of ``examples``, in their order."""
    answers = [prediction.prediction for prediction in predictions]
    groups: dict[str, list[int]] = {}
    for i, example in enumerate(examples):
        if example.group is not None:
            groups.setdefault(example.group, []).append(i)
    return Score(
        metrics=compute_metrics(task, examples, answers),
        interval=percentiles(drawn) if drawn else wilson(sum(hits(examples, answers)), len(examples)),
        unparsed=sum(answer is None for answer in answers),
        seconds=sum(prediction.seconds for prediction in predictions),
        tokens=sum(prediction.tokens for prediction in predictions),
        groups={name: (len(rows), _of_rows(task, examples, answers, rows)) for name, rows in sorted(groups.items())},
    )


def constant(task: Task, examples: Sequence[Example], trained: Sequence[Example] | None = None) -> Baseline:
    """Scores always giving the most frequent answer of the examples, or of training examples."""
    counted = Counter(example.answers[0] for example in (examples if trained is None else trained))
    answer = first_line(counted.most_common(1)[0][0])
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
        return mcnemar(hits(examples, edited), hits(examples, base))
    headlines = [_first(compute_metrics(task, examples, answers, headline=True)) for answers in (edited, base)]
    return paired_bootstrap(drawn[EDITED], drawn[BASE], headlines[0] - headlines[1])


def _of_rows(task: Task, examples: Sequence[Example], answers: Answers, rows: Sequence[int]) -> float:
    return _first(compute_metrics(task, [examples[i] for i in rows], [answers[i] for i in rows], headline=True))


def _first(figures: Mapping[str, float]) -> float:
    return next(iter(figures.values()))


def _metric_options(task: Task, names: Sequence[str]) -> dict[str, dict[str, object]]:
    given = task.metrics if isinstance(task.metrics, dict) else {}
    return {name: given.get(name, {}) for name in names}
