"""Finds the tasks that come with headedit by name, and those in a user's own files by path."""

import dataclasses
import os
from collections.abc import Sequence
from functools import cache
from os import PathLike
from pathlib import Path
from typing import Any

from headedit.errors import HeadEditError, suggest
from headedit.evaluation.tasks.task import Task
from headedit.io import strict
from headedit.io.yaml import read_yaml

_FOLDER = Path(__file__).resolve().parent / "shipped"
_YAML = (".yaml", ".yml")


@cache
def packaged_tasks() -> dict[str, Task]:
    """The tasks that come with headedit, by name."""
    return {task.name: task for task in map(read_task, sorted(_FOLDER.glob("*.yaml")))}


def find_tasks(names: "Sequence[str | Task]", **changes: Any) -> list[Task]:
    """Finds tasks by their names; a suite is all of its tasks. Each comes once, in the order of the names.

    Args:
        names: as for ``find_task``, and suites.
        changes: fields to change in all of them.

    Raises:
        HeadEditError: there is no such task, a task file is faulty, or two different tasks have one name.
    """
    found: dict[str, Task] = {}
    for name in names:
        suite: list[str | Task] = [task for task in packaged_tasks().values() if task.suite == name]
        for task in suite or [name]:
            chosen = find_task(task, **changes)
            if found.setdefault(chosen.name, chosen) != chosen:
                raise HeadEditError(
                    f"Two different tasks are named '{chosen.name}', so their reports would be too. Give one of them "
                    "another name, by 'name' in its file, or evaluate them one by one."
                )
    return list(found.values())


def find_task(task: "str | PathLike[str] | Task", **changes: Any) -> Task:
    """Finds a task by its name or the path of its file.

    Args:
        task: such as ``boolq``, ``mmlu_pro:law`` for one group of a task, ``my_task.yaml``, or a ``Task`` itself.
        changes: fields of it to change.

    Raises:
        HeadEditError: there is no such task or field, or a task file is faulty.
    """
    found = task if isinstance(task, Task) else _shipped_or_file(task)
    fields = {field.name for field in dataclasses.fields(Task)}
    for key in changes:
        if key not in fields:
            raise HeadEditError(f"A task has no field '{key}'.{suggest(key, fields)}")
    return dataclasses.replace(found, **changes) if changes else found


def read_task(file: Path) -> Task:
    """Reads the task in a YAML file, which is named after the file by default.

    Raises:
        HeadEditError: the file cannot be read, or a field is missing, unknown or wrong.
    """
    content = read_yaml(file)
    task = strict.build(Task, {"name": file.stem, **content} if isinstance(content, dict) else content, str(file))
    if task.data is not None and os.path.exists(file.parent / task.data.path.replace("{split}", task.data.split)):
        return dataclasses.replace(task, data=dataclasses.replace(task.data, path=str(file.parent / task.data.path)))
    return task


def _shipped_or_file(task: "str | PathLike[str]") -> Task:
    if Path(task).suffix in _YAML:
        return read_task(Path(task))
    name, colon, group = str(task).partition(":")
    known = packaged_tasks()
    if name not in known:
        suites = sorted({t.suite for t in known.values() if t.suite} - known.keys())  # some are both
        raise HeadEditError(
            f"There is no task '{name}'.{suggest(name, known, elsewhere=True)} A task of your own is a YAML file: give "
            f"its path. Tasks: {', '.join(known)}; suites: {', '.join(suites)}."
        )
    if not colon:
        return known[name]
    groups = known[name].groups or []
    wanted = group.replace("_", " ")
    if wanted not in groups:
        raise HeadEditError(f"The task '{name}' has no group '{group}'.{suggest(wanted, groups)}")
    return dataclasses.replace(known[name], name=f"{name}:{group}", only=wanted)
