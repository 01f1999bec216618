"""Reads the records of a task as examples, from a local file or folder, an address, or the hub."""

import os
import random
from collections.abc import Iterable, Iterator, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from headedit.data.config import check_fields
from headedit.data.formats import rename_fields
from headedit.data.sources import SourceRow, read_rows
from headedit.errors import HeadEditError
from headedit.evaluation.tasks.examples import Example, make_example
from headedit.evaluation.tasks.task import Source, Task
from headedit.io.describe import describe
from headedit.io.optional import import_optional

TaskData = str | PathLike[str] | Iterable[Any]
"""A file, a folder, or an id on the hub; or the records themselves, which may be (prompt, response) pairs."""

_ENDINGS = (".json", ".jsonl", ".csv", ".parquet")
_SAVED = ("state.json", "dataset_dict.json")  # what save_to_disk leaves in a folder


def load_examples(
    task: Task, rows: Iterable[SourceRow], tokenizer: Any, *, limit: int | None, seed: int, skip_broken: bool
) -> tuple[list[Example], list[str]]:
    """Makes examples of rows, perhaps of a sample, and a message for each row that was left out.

    Raises:
        HeadEditError: a row is broken and ``skip_broken`` is false, or nothing is left.
    """
    examples: list[Example] = []
    broken: list[str] = []
    for row in rows:
        try:
            if row.fault is not None:
                raise HeadEditError(row.fault)
            examples.append(make_example(task, row.value, tokenizer, row.where))
        except HeadEditError as error:
            if not skip_broken:
                raise HeadEditError(
                    f"{error} Correct it, or leave such records out (skip_broken=True, --skip-broken)."
                ) from None
            broken.append(str(error))
    if task.only is not None:
        groups = sorted({str(example.group) for example in examples})
        examples = [example for example in examples if example.group == task.only]
        if not examples:
            raise HeadEditError(f"{task.name}: no record is of the group '{task.only}'. Groups: {', '.join(groups)}.")
    if not examples:
        reason = f"all {len(broken)} records are broken, the first: {broken[0]}" if broken else "the split is empty"
        raise HeadEditError(f"{task.name}: there is nothing to evaluate: {reason}.")
    if limit is not None and limit < len(examples):
        chosen = sorted(random.Random(seed).sample(range(len(examples)), limit))
        examples = [examples[i] for i in chosen]
    return examples, broken


def load_rows(task: Task, data: TaskData | None, fields: Mapping[str, str] | None = None) -> Iterable[SourceRow]:
    """Reads the records that are evaluated.

    Args:
        task: says where they are if ``data`` is None, and which split.
        data: where they are instead, or the records.
        fields: what the fields of a format are called in the records; for a task without a prompt of its own.

    Raises:
        HeadEditError: it is not said where they are, they cannot be read, or ``fields`` are given for a task with a
            prompt.
    """
    if fields is not None:
        check_fields(dict(fields))
        if task.prompt is not None:
            raise HeadEditError(
                f"fields: the task '{task.name}' has a prompt of its own, which names the fields; change it there."
            )
        return _renamed(load_rows(task, data), fields)
    if data is None and task.data is None:
        raise HeadEditError(f"The task '{task.name}' does not say where its records are; give data=... or --data.")
    if data is None or isinstance(data, str | PathLike):
        return _read(task, data, "test" if task.data is None else task.data.split)
    if not isinstance(data, Iterable):
        raise HeadEditError(
            f"data: found {describe(data)}, expected records, or where they are: a file, a folder, an address or an id "
            "on the hub."
        )
    return [SourceRow(f"record {i}", _with_fields(record)) for i, record in enumerate(data, start=1)]


def load_training_rows(task: Task, data: TaskData | None, train: TaskData | None) -> Iterable[SourceRow] | None:
    """Reads the records that give the majority answer; None where it is not known where they are."""
    if train is not None:
        return load_rows(task, train)
    if task.data is None or task.data.train is None:
        return None
    if data is None:
        return _read(task, None, task.data.train)
    if isinstance(data, str | PathLike) and os.path.isdir(data):
        file = _in_folder(Path(data), task, task.data.train)
        return None if file is None else read_rows(str(file))
    return None


def _renamed(rows: Iterable[SourceRow], fields: Mapping[str, str]) -> Iterator[SourceRow]:
    for row in rows:
        try:
            yield row if row.fault is not None else row._replace(value=rename_fields(row.value, fields, row.where))
        except HeadEditError as error:
            yield SourceRow(row.where, fault=str(error))


def _with_fields(record: Any) -> Any:
    if isinstance(record, tuple | list) and len(record) == 2:
        return {"prompt": record[0], "response": record[1]}
    return record


def _read(task: Task, data: str | PathLike[str] | None, split: str) -> Iterable[SourceRow]:
    source = Source(path=str(data)) if data is not None or task.data is None else task.data
    path = source.path.replace("{split}", split)
    if path.startswith(("http://", "https://")):
        return _loaded("json", split, data_files={split: path})
    if source.config is not None or source.revision is not None:
        return _loaded(path, split, name=source.config, revision=source.revision)
    file = _in_folder(Path(path), task, split)
    if file is None and os.path.isdir(path) and not any((Path(path) / name).exists() for name in _SAVED):
        places = " or ".join(f"{name}{split}.json" for name in ("", f"{_folder(task)}/"))
        raise HeadEditError(f"{path}: holds no {places}, the {split} split of '{task.name}'.")
    return read_rows(path if file is None else str(file), split)


def _folder(task: Task) -> str:
    name = task.name.partition(":")[0]  # without its group
    return name if task.data is None else task.data.folder or name


def _in_folder(folder: Path, task: Task, split: str) -> Path | None:
    """The file of a split in a folder, or in the folder of the task in it."""
    places = (place / f"{split}{ending}" for place in (folder, folder / _folder(task)) for ending in _ENDINGS)
    return next((file for file in places if os.path.isfile(file)), None)


def _loaded(path: str, split: str, **options: Any) -> Iterator[SourceRow]:
    """A split of a data set by its id, with a configuration or revision, or of a file by its address."""
    datasets = import_optional("datasets", f"The data set '{path}'")
    try:
        found = datasets.load_dataset(path, split=split, **options)
    except Exception as error:  # the hub client, the readers and the network each raise their own
        lines = str(error).strip().splitlines() or [""]
        named = options.get("data_files", {}).get(split, path)
        raise HeadEditError(
            f"The split '{split}' of {named} cannot be loaded ({type(error).__name__}: {lines[0]}). "
            "Give a local file or folder, or the id of a data set on the hub, as data."
        ) from None
    return (SourceRow(f"{path}, {split} record {i}", record) for i, record in enumerate(found, start=1))
