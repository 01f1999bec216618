"""Makes an example of a record: its prompt, its options, and the right answer."""

import re
import string
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from headedit.data import last_exchange
from headedit.data.encoding import encode_for_generation
from headedit.data.formats import check_text
from headedit.errors import HeadEditError
from headedit.evaluation.tasks.readers import read_fields
from headedit.evaluation.tasks.task import MC2, Task
from headedit.evaluation.tasks.templates import render


@dataclass(frozen=True)
class Example:
    """One example.

    Fields:
        where: the file and line, or number, of its record.
        prompt: what the model is given.
        answers: the right label, or for the metric ``mc2`` all right ones; or the references of a free text.
        labels: what names each option; empty for a free text.
        options: the text of each option, its label where it has no other.
        group: the group it is counted in; None where the task has none.
    """

    where: str
    prompt: str
    answers: tuple[str, ...]
    labels: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    group: str | None = None


def make_example(task: Task, record: object, tokenizer: Any, where: str) -> Example:
    """Makes the example of a record.

    Args:
        task: the task.
        record: the record.
        tokenizer: the model's tokenizer, for its chat template and for records that are training examples.
        where: names the record in messages.

    Raises:
        HeadEditError: a field is missing or of a wrong type, or the options do not hold the answer.
    """
    if task.prompt is None or task.answer is None:
        question, response = encode_for_generation(record, tokenizer, where, task.template)
        return Example(where, question, _references(response, where))
    if not isinstance(record, Mapping):
        raise HeadEditError(f"{where}: expected an object with named fields, found {type(record).__name__}.")
    if task.reader is not None:
        record = read_fields(task.reader, record, where)
    labels, options = _labels_and_options(task, record, where)
    instruction = render(task.prompt, {**record, "labels": labels, "options": options}, where)
    check_text(instruction, f"{where}: the prompt")
    if task.options_in_prompt:
        labels = options = tuple(label for label in labels if _names(instruction, label))
    answer = _answer(task.answer, record, where)
    if task.options is None:
        answers = _references(answer, where)
    else:
        right = answer if MC2 in task.metrics and isinstance(answer, list | tuple) else [answer]
        answers = tuple(_label(one, labels, options, where, listed=isinstance(task.options, list)) for one in right)
    turns = [{"role": "user", "content": instruction}, {"role": "assistant", "content": answers[0]}]
    assert task.template is not None  # as the task checks
    prompt, _ = last_exchange(turns, task.template, tokenizer, where)
    group = None if task.group is None else str(_field(record, task.group, where))
    return Example(where, prompt, answers, labels, options, group)


def _labels_and_options(task: Task, record: Mapping[str, Any], where: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    if task.options is None:
        return (), ()
    if isinstance(task.options, list):
        return tuple(task.options), tuple(task.options)
    found = _field(record, task.options, where)
    if not isinstance(found, list | tuple) or not all(isinstance(text, str) for text in found):
        raise HeadEditError(f"{where}: the field '{task.options}' should list the options as texts, found {found!r}.")
    most = len(string.ascii_uppercase) if task.labels == "letters" else None
    if len(found) < 2 or (most is not None and len(found) > most):
        wanted = "2 or more" if most is None else f"2 to {most}"
        raise HeadEditError(f"{where}: the field '{task.options}' lists {len(found)} options, expected {wanted}.")
    options = tuple(found)
    for text in options:
        check_text(text, f"{where}: an option")
    if task.labels == "letters":
        return tuple(string.ascii_uppercase[: len(options)]), options
    if len(set(options)) < len(options):
        raise HeadEditError(f"{where}: the field '{task.options}' lists an option twice, so its text cannot name it.")
    return options, options


def _field(record: Mapping[str, Any], name: str, where: str) -> Any:
    if name not in record:
        raise HeadEditError(f"{where}: the field '{name}' is missing; found {', '.join(map(str, record))}.")
    return record[name]


def _answer(answer: str | list[str], record: Mapping[str, Any], where: str) -> Any:
    names = [answer] if isinstance(answer, str) else answer
    for name in names:
        value = record.get(name)
        if value is not None and value != "" and value != []:
            return value
    fields = " or ".join(f"'{name}'" for name in names)
    found = ", ".join(map(str, record))
    raise HeadEditError(f"{where}: the answer, the field {fields}, is missing or empty; found {found}.")


def _references(answer: Any, where: str) -> tuple[str, ...]:
    references = (answer,) if isinstance(answer, str) else answer
    if not isinstance(references, list | tuple) or not all(isinstance(text, str) for text in references):
        raise HeadEditError(f"{where}: the answer is {answer!r}, expected a text or a list of texts.")
    filled = tuple(text.strip() for text in references if text.strip())
    if not filled:
        raise HeadEditError(f"{where}: the answer is empty.")
    for text in filled:
        check_text(text, f"{where}: the answer")
    return filled


def _label(answer: Any, labels: tuple[str, ...], options: tuple[str, ...], where: str, *, listed: bool) -> str:
    """The label of the right option; a number is its index, but may also be one of the labels that the task lists."""
    if isinstance(answer, int) and not isinstance(answer, bool) and 0 <= answer < len(labels):
        if listed and str(answer) in labels and labels[answer] != str(answer):
            raise HeadEditError(
                f"{where}: the answer {answer} is an option of the task, and also the index of its option "
                f"'{labels[answer]}'. Write it as a text, \"{answer}\", if it is the option."
            )
        return labels[answer]
    wanted = str(answer).strip().lower()
    for names in (labels, options):
        for label, name in zip(labels, names, strict=True):
            if name.strip().lower() == wanted:
                return label
    possible = ", ".join(labels if labels else ["none"])
    raise HeadEditError(f"{where}: the answer {answer!r} is not among the options: {possible}.")


def _names(text: str, label: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(label)}(?!\w)", text, re.IGNORECASE) is not None
