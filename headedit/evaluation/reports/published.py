"""Published figures, to show next to measured ones: ``published.yaml`` and what its columns are averages of."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from headedit.io.yaml import read_yaml

_FILE = Path(__file__).with_suffix(".yaml")
_COMMONSENSE = ("arc_c", "arc_e", "boolq", "hellaswag", "obqa", "piqa", "siqa", "winogrande")
_GENERATION = ("common_gen", "e2e_nlg", "web_nlg", "xsum")


@dataclass(frozen=True, kw_only=True)
class Column:
    """A column of the published tables.

    Fields:
        title: how it is headed.
        tasks: the tasks of headedit that it is of.
        metric: the figure of each.
        parts: the number of figures that it is the mean of, and what each is of.
    """

    title: str
    tasks: tuple[str, ...]
    metric: str
    parts: tuple[int, str]


COLUMNS = {
    "reasoning": Column(title="reasoning", tasks=_COMMONSENSE, metric="accuracy", parts=(8, "tasks")),
    "mmlu_pro": Column(title="MMLU-Pro", tasks=("mmlu_pro",), metric="accuracy", parts=(14, "domains")),
    "bleu": Column(title="BLEU", tasks=_GENERATION, metric="bleu", parts=(4, "tasks")),
    "rouge_l": Column(title="ROUGE-L", tasks=_GENERATION, metric="rougeL", parts=(4, "tasks")),
    "bertscore": Column(title="BERTScore", tasks=_GENERATION, metric="bertscore", parts=(4, "tasks")),
}
"""The columns by the names that the figures have in ``published.yaml``."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """One line of a paper's table; the figures are in per cent.

    Fields:
        source: key of the paper in ``Published.sources``.
        model: the model's name.
        method: what was done to it.
        reasoning, mmlu_pro, bleu, rouge_l, bertscore: the figures of ``COLUMNS``.
    """

    source: str
    model: str
    method: str
    reasoning: float
    mmlu_pro: float
    bleu: float
    rouge_l: float
    bertscore: float


@dataclass(frozen=True, kw_only=True)
class Published:
    """Figures with their origin.

    Fields:
        setting: what they were measured on.
        sources: the papers, by key.
        cautions: what is known to be wrong with some of them.
        results: the lines.
    """

    setting: str
    sources: dict[str, str]
    cautions: tuple[str, ...]
    results: tuple[Result, ...]


@cache
def published() -> Published:
    """The figures that come with headedit.

    >>> published().results[7].method, published().results[7].reasoning
    ('JoLA', 70.55)
    """
    data: Any = read_yaml(_FILE)
    return Published(
        setting=data["setting"],
        sources=data["sources"],
        cautions=tuple(data["cautions"]),
        results=tuple(Result(**line) for line in data["results"]),
    )
