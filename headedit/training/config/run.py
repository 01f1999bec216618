"""``RunConfig``: a whole training run as data, checked before any work is done."""

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import yaml

from headedit.data.config import DataConfig
from headedit.edits import EditConfig
from headedit.errors import HeadEditError
from headedit.io import strict
from headedit.io.files import write_atomically
from headedit.runs.files import RUN_YAML
from headedit.training.config.model import ModelConfig
from headedit.training.config.names import argument_hints, resolve
from headedit.training.recipes.stability_selection import check_halves
from headedit.version import __version__

Tracker = Literal[
    "none",
    "tensorboard",
    "wandb",
    "all",
    "azure_ml",
    "clearml",
    "codecarbon",
    "comet_ml",
    "dagshub",
    "dvclive",
    "flyte",
    "kubeflow",
    "mlflow",
    "neptune",
    "swanlab",
    "trackio",
]


@dataclass(frozen=True, kw_only=True)
class LoggingConfig:
    """Where training logs its figures, in addition to ``history.jsonl``.

    Fields:
        report_to: ``none``, ``tensorboard``, ``wandb`` or another reporter of transformers, ``all`` for those that are
            installed, or a list of these.
        every: optimiser steps between logs; None for about five logs per epoch.
        run_name: name of the run in the trackers; None for the tracker's choice.
        project: the project of the run in W&B and Trackio, unless ``WANDB_PROJECT`` names one; None for the tracker's
            choice.
        tags: the tags of the run in W&B, unless ``WANDB_TAGS`` has some.
    """

    report_to: Tracker | list[Tracker] = "none"
    every: int | None = None
    run_name: str | None = None
    project: str | None = None
    tags: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        strict.check(self)
        if self.every is not None and self.every < 1:
            raise HeadEditError(f"every: found {self.every}, expected 1 or more.")
        for tag in self.tags:
            if not tag or "," in tag:
                raise HeadEditError(
                    f"tags: found {tag!r}, expected words without a comma, by which W&B separates them."
                )

    @property
    def trackers(self) -> list[str]:
        """The trackers as a list, without ``none``."""
        given = [self.report_to] if isinstance(self.report_to, str) else self.report_to
        return [name for name in given if name != "none"]

    def arguments(self) -> dict[str, Any]:
        """The fields of ``TrainingArguments`` that these settings are."""
        given = {"report_to": self.trackers or None, "logging_steps": self.every, "run_name": self.run_name}
        if "project" in argument_hints():  # older versions have no such field
            given["project"] = self.project
        return {name: value for name, value in given.items() if value is not None}


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """A training run as data: model, examples, edits, recipe, training arguments and logging.

    ``headedit.train`` runs it. In a YAML file the keys are the fields below; unknown keys and wrong types are errors.

    Fields:
        model: the base model; see ``ModelConfig``.
        data: the examples; see ``headedit.DataConfig``.
        spec: path of a spec file, for an architecture that headedit does not know; None to look it up.
        edits: which layers and sites are edited, and with which vectors and gates; see ``headedit.EditConfig``.
        recipe: the ``name`` of the recipe, and any of its fields. In a resolved config, all of its fields.
        training: any field of ``transformers.TrainingArguments``. Those that recipes have as their own become fields of
            the recipe: ``num_train_epochs``, ``per_device_train_batch_size``, ``lr_scheduler_type``, ``weight_decay``,
            ``adam_epsilon``, ``max_grad_norm``, and ``learning_rate``, which sets the recipe's first learning rate of
            vectors; its other ones keep their default ratio to it. In a resolved config, only the remaining fields.
        logging: trackers; see ``LoggingConfig``.
        seed: seed of the order of examples and of the gates' noise; the draw of examples has its own, ``data.seed``.
        seeds: number of runs, with the seeds ``seed``, ``seed + 1``, ...; the record says how far they agree.
        controls: also fit as many random gates, and every head without gates, for comparison.
        bootstrap: number of halves of the examples on which all gates are ranked, to say how sure each head is; an even
            number such as 20, or 0 to leave it out.
        cache_prefix: run the layers below the first edited one only once for each example; ``edits: layers`` must leave
            the first layers out. It takes tokens × hidden size × bytes per element of host memory; see
            ``headedit.fit``.
        output: folder for the edits and all other files of the run.

    Raises:
        HeadEditError: a value is of a wrong type or out of range, a key is unknown, the same setting is given twice,
            or there is no validation set for several seeds or controls.
    """

    model: ModelConfig
    data: DataConfig
    spec: str | None = None
    edits: EditConfig = field(default_factory=EditConfig)
    recipe: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    logging: LoggingConfig = field(default_factory=LoggingConfig)
    seed: int = 0
    seeds: int = 1
    controls: bool = False
    bootstrap: int = 0
    cache_prefix: bool = False
    output: str | None = None

    def __post_init__(self) -> None:
        strict.check(self)
        if self.seeds < 1:
            raise HeadEditError(f"seeds: found {self.seeds}, expected 1 or more.")
        if self.bootstrap:
            check_halves(self.bootstrap)
        if self.output == "":
            raise HeadEditError("output: found an empty string, expected a folder.")
        if (self.controls or self.seeds > 1) and self.data.valid is None:
            raise HeadEditError(
                "data: valid: is missing; several seeds, and controls, are compared on validation examples."
            )
        name, recipe, rest = resolve(self.recipe, self.training)
        object.__setattr__(self, "recipe", {"name": name, **vars(recipe)})
        object.__setattr__(self, "training", rest)

    @staticmethod
    def from_dict(data: object, where: str) -> "RunConfig":
        """Makes a config of plain data, such as the content of a YAML file.

        Args:
            data: a mapping from keys to values.
            where: the source of the data, for messages.

        Raises:
            HeadEditError: a key is unknown or missing, or a value is of a wrong type or out of range.
        """
        return strict.build(RunConfig, data, where)

    @property
    def recipe_name(self) -> str:
        """The name of the recipe."""
        return str(self.recipe["name"])

    @property
    def recipe_fields(self) -> dict[str, Any]:
        """All fields of the recipe."""
        return {key: value for key, value in self.recipe.items() if key != "name"}

    def arguments(self) -> dict[str, Any]:
        """The fields of ``TrainingArguments`` for ``headedit.fit(..., arguments=...)``."""
        return {**self.training, **self.logging.arguments()}

    def to_dict(self) -> dict[str, Any]:
        """Every field as plain data, from which ``from_dict`` makes an equal config."""
        plain = _plain(dataclasses.asdict(self))
        assert isinstance(plain, dict)
        return plain

    def absolute(self) -> "RunConfig":
        """The same config with absolute paths of all existing files and folders, so that it is valid in any folder."""
        data = {name: _absolute(getattr(self.data, name)) for name in ("train", "valid", "test")}
        return dataclasses.replace(
            self,
            model=dataclasses.replace(self.model, name=_absolute(self.model.name)),
            data=dataclasses.replace(self.data, **data),
            spec=_absolute(self.spec),
            output=None if self.output is None else str(Path(self.output).absolute()),
        )

    def save(self, folder: "str | PathLike[str]") -> Path:
        """Writes ``run.yaml``, with which ``headedit train`` repeats the run, and returns its path.

        Raises:
            HeadEditError: the folder cannot be written.
        """
        file = Path(folder) / RUN_YAML
        lead = f"# Resolved by headedit {__version__}. To repeat this run: headedit train {RUN_YAML}\n"
        text = yaml.safe_dump(self.absolute().to_dict(), sort_keys=False, allow_unicode=True)
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(file, (lead + text).encode())
        except OSError as error:
            raise HeadEditError(f"{file}: cannot be written ({error.strerror}).") from None
        return file


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _absolute(source: Any) -> Any:
    """An existing path, perhaps with ``:split``, as an absolute one; anything else, such as a hub id, unchanged."""
    if isinstance(source, list):
        return [_absolute(item) for item in source]
    if not isinstance(source, str):
        return source
    if os.path.exists(source):
        return str(Path(source).absolute())
    folder, colon, split = source.rpartition(":")
    return f"{Path(folder).absolute()}:{split}" if colon and os.path.isdir(folder) else source
