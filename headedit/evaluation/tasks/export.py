"""Exports a task's records as training examples: the prompt of the evaluation, and the response to teach."""

from dataclasses import replace
from os import PathLike

from headedit.errors import HeadEditError
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
    """Makes records of ``instruction`` and ``answer`` for ``headedit train``.

    Args:
        task: a name, a file or a task.
        data: where the records are; by default where the task says.
        split: which split.
        limit: use this many records, drawn by the seed.
        seed: seed of the draw.
        skip_broken: leave broken records out.

    Returns:
        The records, and a message for each that was left out.

    Raises:
        HeadEditError: there is no such task or split, or a record is broken.
    """
    found = find_task(task, template="plain")
    if found.prompt is None:
        raise HeadEditError(f"The records of '{found.name}' are training examples already; train on their file.")
    source = Source(path="", split=split) if found.data is None else replace(found.data, split=split)
    if found.data is not None or data is not None:
        found = replace(found, data=source)
    examples, broken = load_examples(
        found, load_rows(found, data), None, limit=limit, seed=seed, skip_broken=skip_broken
    )
    return [
        {
            "instruction": example.prompt,
            "answer": render(found.response, {"answer": example.answers[0]}, example.where),
        }
        for example in examples
    ], broken
