"""Exports a task's records as training examples: the prompt of the evaluation, and the response to teach."""

from dataclasses import replace
from os import PathLike
from typing import Any

from headedit.errors import HeadEditError
from headedit.evaluation.tasks.examples import Example
from headedit.evaluation.tasks.records import TaskData, load_examples, load_rows
from headedit.evaluation.tasks.task import Source, Task
from headedit.evaluation.tasks.task_files import find_task
from headedit.evaluation.tasks.templates import render


def training_records(
    task: "str | PathLike[str] | Task",
    *,
    data: TaskData | None = None,
    split: str = "train",
    limit: int | None = None,
    seed: int = 0,
    skip_broken: bool = False,
) -> tuple[list[dict[str, str]], list[str]]:
    """Makes records of ``instruction`` and ``answer`` for ``headedit train``, or of ``prompt`` and ``response``.

    The latter for a task whose template is ``plain``: training then leaves its prompts as they are, too.

    Args:
        task: a name, a file or a task.
        data: where the records are; by default where the task says.
        split: which split.
        limit: use at most this many records, drawn by the seed.
        seed: seed of the draw.
        skip_broken: leave broken records out.

    Returns:
        The records, and a message for each that was left out.

    Raises:
        HeadEditError: there is no such task or split, or a record is broken.
    """
    names = ("prompt", "response") if find_task(task).template == "plain" else ("instruction", "answer")
    found = find_task(task, template="plain")
    if found.prompt is None:
        raise HeadEditError(f"The records of '{found.name}' are training examples already; train on their file.")
    found = _with_split(found, data, split)
    examples, broken = load_examples(
        found, load_rows(found, data), None, limit=limit, seed=seed, skip_broken=skip_broken
    )
    return [dict(zip(names, (example.prompt, _response(found, example)), strict=True)) for example in examples], broken


def preference_records(
    task: "str | PathLike[str] | Task",
    *,
    data: TaskData | None = None,
    split: str = "train",
    limit: int | None = None,
    seed: int = 0,
    skip_broken: bool = False,
    **changes: Any,
) -> tuple[list[dict[str, str]], list[str]]:
    """Makes records of ``prompt``, ``chosen`` and ``rejected`` of a task with options, for ``headedit dpo``.

    Chosen is the right option, rejected the first of the others, as LoFiT takes them.

    Args:
        task, data, split, limit, seed, skip_broken: as in ``training_records``.
        changes: fields of the task to change, such as its prompt.

    Raises:
        HeadEditError: the task has no options, every option of a record is right, or as in ``training_records``.
    """
    found = find_task(task, template="plain", **changes)
    if found.options is None:
        raise HeadEditError(f"The task '{found.name}' has no options, of which one could be rejected.")
    found = _with_split(found, data, split)
    examples, broken = load_examples(
        found, load_rows(found, data), None, limit=limit, seed=seed, skip_broken=skip_broken
    )
    rows = []
    for example in examples:
        options = dict(zip(example.labels, example.options, strict=True))
        wrong = next((option for label, option in options.items() if label not in example.answers), None)
        if wrong is not None:
            rows.append({"prompt": example.prompt, "chosen": options[example.answers[0]], "rejected": wrong})
            continue
        message = f"{example.where}: every option is right, so none can be rejected."
        if not skip_broken:
            raise HeadEditError(f"{message} Correct it, or leave such records out (skip_broken=True, --skip-broken).")
        broken.append(message)
    if not rows:
        raise HeadEditError(f"{found.name}: there is nothing to export: no record has a wrong option.")
    return rows, broken


def _with_split(task: Task, data: TaskData | None, split: str) -> Task:
    """The task with another split as the one that is read."""
    if task.data is not None:
        return replace(task, data=replace(task.data, split=split))
    return task if data is None else replace(task, data=Source(path="", split=split))


def _response(task: Task, example: Example) -> str:
    return render(task.response, {"answer": example.answers[0]}, example.where)
