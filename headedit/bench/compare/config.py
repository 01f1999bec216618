"""``CompareConfig``: what ``headedit compare`` compares, as one strict YAML file."""

import copy
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

from headedit.errors import HeadEditError
from headedit.io import strict
from headedit.io.yaml import read_yaml
from headedit.training.config import ModelConfig


@dataclass(frozen=True, kw_only=True)
class ComparedTask:
    """One task of a comparison.

    Fields:
        task: name of a task that comes with headedit, or a task file; relative to the comparison's file, or to the
            working folder. None for the name under which it stands.
        data: folder with a file of records per split, or an id on the hub; None where the task says.
        train, test: the splits.
        changes: fields of the task to change.
    """

    task: str | None = None
    data: str | None = None
    train: str = "train"
    test: str = "test"
    changes: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class CompareConfig:
    """Methods × tasks × numbers of examples × seeds on one model.

    Fields:
        model: the base model, as in a run.
        tasks: the tasks by name.
        output: folder for a folder per cell and the tables.
        methods: names of methods, or a mapping from each to settings of its own; empty for all.
        sizes: numbers of training examples; the same examples are given to every method.
        seeds: of examples and training.
        epochs: passes over the examples, for every method that trains; recipes of two stages make so many in each.
        batch_size: examples per step, for every method.
        validation: share of the training examples on which a method with several learning rates chooses among them.
        test_examples: the largest number of test examples; the same for every method.
        eval_batch_size: examples per batch of the evaluation.
        max_length: longest training example in tokens; None for the model's context.

    Raises:
        HeadEditError: a list is empty or holds something impossible.
    """

    model: ModelConfig
    tasks: dict[str, ComparedTask]
    output: str
    methods: list[str] | dict[str, dict[str, Any]] = field(default_factory=list)
    sizes: list[int] = field(default_factory=lambda: [24, 200])
    seeds: list[int] = field(default_factory=lambda: [0])
    epochs: int = 8
    batch_size: int = 8
    validation: float = 0.2
    test_examples: int = 300
    eval_batch_size: int = 32
    max_length: int | None = None

    def __post_init__(self) -> None:
        strict.check(self)
        for name in ("tasks", "sizes", "seeds"):
            values = list(getattr(self, name))
            if not values or len(set(values)) < len(values):
                raise HeadEditError(f"{name}: found {values}, expected at least one value, and none twice.")
        if isinstance(self.methods, list) and len(set(self.methods)) < len(self.methods):
            raise HeadEditError(f"methods: found {self.methods}, in which a name occurs twice.")
        least = {"epochs": 1, "batch_size": 1, "test_examples": 2, "eval_batch_size": 1}
        for name, minimum in least.items():
            if getattr(self, name) < minimum:
                raise HeadEditError(f"{name}: found {getattr(self, name)}, expected {minimum} or more.")
        if min(self.sizes) < 4:
            raise HeadEditError(f"sizes: found {self.sizes}, expected numbers of at least 4 training examples.")
        if not 0 < self.validation < 1:
            raise HeadEditError(f"validation: found {self.validation}, expected a share between 0 and 1.")

    @property
    def settings(self) -> dict[str, dict[str, Any]]:
        """The settings of each method that is named."""
        return self.methods if isinstance(self.methods, dict) else {name: {} for name in self.methods}

    @staticmethod
    def read(file: "str | PathLike[str]", changes: Mapping[str, Any] | None = None) -> "CompareConfig":
        """Reads a comparison from a YAML file.

        Args:
            file: the path of the file.
            changes: values that replace those of the file, by key, such as ``{"model.name": "./my-model"}``.

        Raises:
            HeadEditError: the file cannot be read, or its content is wrong.
        """
        path = Path(file)
        found = strict.build(CompareConfig, _merged(read_yaml(path), changes or {}), str(path))
        return dataclasses.replace(found, tasks={name: _resolved(path, task) for name, task in found.tasks.items()})


def _merged(content: object, changes: Mapping[str, Any]) -> object:
    """Plain data with values put in by their keys, in which dots lead into sections."""
    if not isinstance(content, Mapping):
        return content
    merged = copy.deepcopy(dict(content))
    for key, value in changes.items():
        strict.put(merged, key.split("."), value)
    return merged


def _resolved(file: Path, task: ComparedTask) -> ComparedTask:
    """The task with paths that are relative to the file's folder where they are there."""

    def found(name: str | None) -> str | None:
        return str(file.parent / name) if name is not None and (file.parent / name).exists() else name

    return dataclasses.replace(task, task=found(task.task), data=found(task.data))
