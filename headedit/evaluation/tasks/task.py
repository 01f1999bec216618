"""A task: how a record becomes a prompt, what may be answered, and how answers are scored.

A task is data: a YAML file or a ``Task`` made in Python, read by ``headedit.io.strict``, which refuses what it does
not know. The prompt is a Jinja template over the fields of a record, as in promptsource and chat templates.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

from jinja2 import TemplateSyntaxError

from headedit.data import Template
from headedit.errors import HeadEditError
from headedit.evaluation.tasks.readers import Reader
from headedit.evaluation.tasks.templates import compiled
from headedit.io import strict

Scoring = Literal["generation", "loglikelihood"]

ACCURACY = "accuracy"
"""The metric that needs no library: the share of answers that are right."""

MC2 = "mc2"
"""The metric of options of which several are right: the probability of the right ones among all, in per cent."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """The place of a task's records.

    Fields:
        path: a JSON file, a folder with a file per split, the address of a JSON file, or the id of a data set on the
            hub; ``{split}`` in a file's name or address is replaced by the split.
        split: the split that is evaluated.
        train: the split that gives the majority answer; None for none.
        config: name of the configuration on the hub.
        revision: branch or commit on the hub.
        folder: name of this task's folder where a folder holds those of several tasks; by default the task's name.
    """

    path: str
    split: str = "test"
    train: str | None = None
    config: str | None = None
    revision: str | None = None
    folder: str | None = None


@dataclass(frozen=True, kw_only=True)
class Task:
    """One task.

    Fields:
        name: what reports call it.
        prompt: a Jinja template over the fields of a record, and ``labels`` and ``options``. None where records are
            examples to train on: the last response of each is the answer, and all before it the prompt.
        answer: the field that holds the answer, or several of which the first that is filled counts. For a choice:
            the label, the option's text or its index, or for the metric ``mc2`` a list of them. For a text: the
            reference, or a list of references. None where ``prompt`` is.
        reader: makes the fields that the prompt names of the records of a data set as it is published, see
            ``headedit.evaluation.tasks.readers``; None where the records have them.
        response: a Jinja template over ``answer``, of what training on the task teaches; see ``export``.
        options: the options, where every record has the same, or the field that lists them; None for a free text.
        labels: what names an option that comes from a field: a capital letter, or its own text.
        options_in_prompt: only those of the same options that a record's prompt names are options of it.
        template: what the prompt is put into, see ``headedit.data``: ``alpaca`` as in the JoLA paper, ``chat`` for the
            tokenizer's own, ``plain`` for nothing; None, where ``prompt`` is, for what training takes by default.
        scoring: ``generation`` and extraction of the answer, or ``loglikelihood`` of each label as a continuation.
        normalise: divides a log-likelihood by the label's number of tokens or bytes.
        delimiter: the text between the prompt and a label whose log-likelihood is computed.
        num_beams: beams of the generation.
        max_new_tokens: longest answer; None for the longest expected one and the end-of-text.
        ignore_case: whether capital and small letters count as the same in a free text's accuracy.
        metrics: ``accuracy``; ``mc2`` for options scored by their likelihood of which several are right; or names of
            ``headedit.evaluation.scores.metrics``, perhaps with their options. The first is the headline.
        group: the field that names the group of a record, for figures per group.
        groups: names of the groups.
        only: evaluate this group alone.
        suite: a name for all tasks that give it.
        data: where the records are; None where they are always given.
        description: what the task is, and where it is from.
    """

    name: str
    prompt: str | None
    answer: str | list[str] | None
    reader: Reader | None = None
    response: str = "{{ answer }}"
    options: str | list[str] | None = None
    labels: Literal["letters", "text"] = "letters"
    options_in_prompt: bool = False
    template: Template | None = "alpaca"
    scoring: Scoring = "generation"
    normalise: Literal["none", "tokens", "bytes"] = "none"
    delimiter: str = ""
    num_beams: int = 4
    max_new_tokens: int | None = 16
    ignore_case: bool = False
    metrics: list[str] | dict[str, dict[str, Any]] = field(default_factory=lambda: [ACCURACY])
    group: str | None = None
    groups: list[str] | None = None
    only: str | None = None
    suite: str | None = None
    data: Source | None = None
    description: str = ""

    def __post_init__(self) -> None:
        strict.check(self)
        for name, value in (("name", self.name), ("prompt", self.prompt), ("answer", self.answer)):
            if value is not None and (not value or not all(value)):
                raise HeadEditError(f"{name}: is empty.")
        if (self.prompt is None) != (self.answer is None):
            raise HeadEditError("prompt and answer: give both, or null for both where records are training examples.")
        if self.prompt is None and self.options is not None:
            raise HeadEditError("options: need a prompt; without one the last response of a record is the answer.")
        if self.prompt is not None and self.template is None:
            raise HeadEditError("template: null needs records that are training examples; give plain, for none.")
        if self.num_beams < 1 or (self.max_new_tokens is not None and self.max_new_tokens < 1):
            raise HeadEditError("num_beams and max_new_tokens: expected 1 or more.")
        if isinstance(self.options, list) and len(set(self.options)) < max(2, len(self.options)):
            raise HeadEditError(f"options: found {self.options}, expected two or more that differ.")
        if self.options_in_prompt and not isinstance(self.options, list):
            raise HeadEditError("options_in_prompt: needs options that are listed in the task.")
        if self.scoring == "loglikelihood" and self.options is None:
            raise HeadEditError("scoring: loglikelihood needs options; a free text can only be generated.")
        if not self.metrics:
            raise HeadEditError(f"metrics: is empty; expected {ACCURACY} or the name of another metric.")
        if list(self.metrics) == [MC2] and (self.scoring != "loglikelihood" or self.labels != "text"):
            raise HeadEditError("metrics: mc2 needs scoring: loglikelihood, and labels: text.")
        if MC2 in self.metrics and list(self.metrics) != [MC2]:
            raise HeadEditError(f"metrics: found {list(self.metrics)}; mc2 stands alone.")
        if self.options is not None and list(self.metrics) not in ([ACCURACY], [MC2]):
            raise HeadEditError(f"metrics: found {self.metrics}; a choice is measured by {ACCURACY} alone.")
        if self.only is not None and self.group is None:
            raise HeadEditError("only: needs a group, the field that names the group of a record.")
        for name, template in (("prompt", self.prompt or ""), ("response", self.response)):
            try:
                compiled(template)
            except TemplateSyntaxError as error:
                message = f"{name}: not a template that can be read, line {error.lineno}: {error.message}"
                raise HeadEditError(message) from None
