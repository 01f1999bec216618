"""The result of an evaluation: figures with their intervals, next to the baselines that they must beat."""

from dataclasses import asdict, dataclass, field
from typing import Any

from headedit.evaluation.scores.statistics import PairedTest
from headedit.evaluation.tasks.task import ACCURACY
from headedit.io.html import html_block, html_note, html_table

_TELLING = 0.1  # the share of unparsed answers from which a remark is due


@dataclass(frozen=True, kw_only=True)
class Score:
    """The figures of one system.

    Fields:
        metrics: figures by name, the headline first; accuracy as a share, 0 to 1.
        interval: 95 % interval of the headline: Wilson's for accuracy, of the bootstrap for the others.
        unparsed: answers that could not be parsed, or that are empty.
        seconds: time of generating or scoring, that of all processes added up.
        tokens: tokens generated or scored.
        groups: number of examples and headline of each group.
    """

    metrics: dict[str, float]
    interval: tuple[float, float]
    unparsed: int
    seconds: float
    tokens: int
    groups: dict[str, tuple[int, float]] = field(default_factory=dict)

    @property
    def value(self) -> float:
        """The headline."""
        return next(iter(self.metrics.values()))

    @property
    def mean_of_groups(self) -> float | None:
        """Unweighted mean of the headline over the groups."""
        return sum(value for _, value in self.groups.values()) / len(self.groups) if self.groups else None

    @property
    def tokens_per_second(self) -> float:
        """Tokens generated or scored per second of a process."""
        return self.tokens / self.seconds if self.seconds else 0.0


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """The score of one answer given to every example."""

    answer: str
    value: float


@dataclass(frozen=True, kw_only=True)
class Report:
    """The result of one task.

    Fields:
        task: its name.
        n: number of examples.
        metric: name of the headline.
        scoring: ``generation`` or ``loglikelihood``.
        score: the model as it was given, with its edits.
        base: the model with its edits switched off; None where it has none.
        constant: the most frequent answer of these examples, given every time; for a choice, the most that a constant
            can score.
        majority: the most frequent answer of the training split, given every time; None without such a split.
        test: the edited model against the base on the same examples; None without edits.
        left_out: a message for every record that was left out.
        settings: with which task, model and edits.
    """

    task: str
    n: int
    metric: str
    scoring: str
    score: Score
    base: Score | None
    constant: Baseline
    majority: Baseline | None
    test: PairedTest | None
    left_out: list[str]
    settings: dict[str, Any]

    def __repr__(self) -> str:
        base = "" if self.base is None else f", base {shown(self.metric, self.base.value)}"
        constant = f", constant answer {shown(self.metric, self.constant.value)}"
        score = _with_interval(self.metric, self.score)
        return f"Report({self.task}: {self.metric} {score}{base}{constant}; n = {self.n})"

    def _repr_html_(self) -> str:
        systems = [("model" if self.base is None else "edited model", self.score)]
        systems += [] if self.base is None else [("base model", self.base)]
        rows = [(name, *_with_interval(self.metric, score).split(" ", 1)) for name, score in systems]
        rows.append((f"always '{self.constant.answer}'", shown(self.metric, self.constant.value), ""))
        if self.majority is not None:
            answer = f"always '{self.majority.answer}', the training split's most frequent"
            rows.append((answer, shown(self.metric, self.majority.value), ""))
        notes = [] if self.test is None else [f"Edited against base: p = {self.test.p:.2g} ({self.test.name})."]
        return html_block(
            f"{self.task}: {self.n} examples",
            html_table(["", self.metric, "95 % interval"], rows, left=1),
            *map(html_note, [*notes, *self.remarks]),
        )

    @property
    def accuracy(self) -> float:
        """Share of right answers, 0 to 1; the headline where the task has another."""
        return self.score.value

    @property
    def base_accuracy(self) -> float | None:
        """The same with the edits switched off; None where there are none."""
        return None if self.base is None else self.base.value

    @property
    def constant_answer(self) -> str:
        """The most frequent answer."""
        return self.constant.answer

    @property
    def constant_accuracy(self) -> float:
        """The score of always giving that answer."""
        return self.constant.value

    @property
    def seconds(self) -> float:
        """Time of generating or scoring, of the model and the base."""
        return self.score.seconds + (self.base.seconds if self.base else 0.0)

    @property
    def remarks(self) -> list[str]:
        """Remarks that a reader should know before trusting the figures."""
        name = "model" if self.base is None else "edited model"
        found = []
        low, high = self.score.interval
        if low <= self.constant.value <= high:
            found.append(f"The {name} cannot be distinguished from the constant answer '{self.constant.answer}'.")
        elif self.score.value < self.constant.value:
            found.append(f"The {name} is below the constant answer '{self.constant.answer}'.")
        systems = [(name, self.score), *([("base", self.base)] if self.base else [])]
        for system, score in systems:
            if score.unparsed > _TELLING * self.n:
                found.append(f"{score.unparsed} of {self.n} answers of the {system} could not be parsed.")
        if self.left_out:
            found.append(f"{len(self.left_out)} records are left out, the first: {self.left_out[0]}")
        return found

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain data, with the rates and means that follow from it."""
        data = asdict(self)
        for key, score in (("score", self.score), ("base", self.base)):
            if score is not None:
                data[key] |= {
                    "value": score.value,
                    "mean_of_groups": score.mean_of_groups,
                    "tokens_per_second": score.tokens_per_second,
                    "examples_per_second": self.n / score.seconds if score.seconds else None,
                }
        return {**data, "remarks": self.remarks}


def _with_interval(metric: str, score: Score) -> str:
    """A headline with its 95 % interval, such as ``82.0 [76.1, 86.7]``."""
    low, high = (shown(metric, end) for end in score.interval)
    return f"{shown(metric, score.value)} [{low}, {high}]"


def shown(metric: str, value: float) -> str:
    """A figure for a table: accuracy as a percentage, the others as their library gives them."""
    return f"{100 * value:.1f}" if metric == ACCURACY else f"{value:.2f}"
