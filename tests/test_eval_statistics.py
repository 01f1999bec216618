"""Intervals and paired tests against values worked out by hand or printed elsewhere."""

import math

import pytest

from headedit import Task
from headedit.evaluation.scores.scoring import constant
from headedit.evaluation.scores.statistics import bootstrap, mcnemar, paired_bootstrap, percentiles, wilson
from headedit.evaluation.tasks.examples import Example


@pytest.mark.parametrize(
    ("hits", "n", "low", "high"),
    [
        (0, 10, 0.0, 0.2775),  # Newcombe (1998) and the tables of Agresti and Coull
        (8, 10, 0.4902, 0.9433),
        (81, 263, 0.2553, 0.3662),
        (10, 10, 0.7225, 1.0),
    ],
)
def test_the_interval_of_a_share_is_wilsons(hits, n, low, high):
    assert wilson(hits, n) == pytest.approx((low, high), abs=5e-5)


def test_mcnemar_is_the_exact_binomial_on_what_differs():
    edited = [True] * 10 + [False] * 2 + [True] * 30
    base = [False] * 10 + [True] * 2 + [True] * 30
    found = mcnemar(edited, base)
    assert (found.only_edited, found.only_base) == (10, 2)
    assert found.p == pytest.approx(2 * sum(math.comb(12, k) for k in range(3)) / 2**12)
    assert found.difference == pytest.approx(8 / 42)
    assert mcnemar(base, edited).p == found.p
    assert mcnemar(base, base).p == 1.0
    assert mcnemar([True, False], [False, True]).p == 1.0


def test_mcnemar_is_exact_for_many_examples():
    found = mcnemar([True] * 6000 + [False] * 5000, [False] * 6000 + [True] * 5000)
    assert 0 < found.p < 1e-20


def test_the_bootstrap_draws_the_same_sets_for_every_system():
    values = [float(i % 7) for i in range(200)]

    def mean(rows):
        return sum(values[i] for i in rows) / len(rows)

    draws = bootstrap(mean, len(values))
    assert draws == bootstrap(mean, len(values))
    low, high = percentiles(draws)
    error = 1.96 * 2.0 / math.sqrt(200)  # the standard deviation of 0 to 6 is 2
    truth = sum(values) / 200
    assert (low, high) == pytest.approx((truth - error, truth + error), abs=0.1)
    better = [draw + 0.01 for draw in draws]
    assert paired_bootstrap(better, draws, 0.01, 200).p == pytest.approx(2 / 301)  # small, but the draws are the same
    assert paired_bootstrap(draws, draws, 0.0, 200).p == 1.0


@pytest.mark.parametrize(("n", "p"), [(1, 1.0), (2, 0.5), (5, 1 / 16), (2000, 2 / 301)])
def test_the_bootstrap_of_few_examples_has_no_smaller_p_than_they_can_show(n, p):
    assert paired_bootstrap([1.0] * 300, [0.0] * 300, 1.0, n).p == pytest.approx(p)


def test_the_most_frequent_answer_is_counted_as_answers_are_compared():
    task = Task(name="t", prompt="{{ x }}", answer="y", ignore_case=True)
    answers = ["no", "no", "no", "Yes", "yes", "YES\nof course", "yes"]
    examples = [Example(str(i), "?", (answer,)) for i, answer in enumerate(answers)]
    found = constant(task, examples)
    assert (found.answer, found.value) == ("Yes", pytest.approx(4 / 7))
