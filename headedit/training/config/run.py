"""``RunConfig``: everything that a training run is made of, checked before any work is done."""

import dataclasses
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
from headedit.training.config.names import settle
from headedit.version import __version__

Tracker = Literal["none", "tensorboard", "wandb"]


@dataclass(frozen=True, kw_only=True)
class LoggingConfig:
    """Where the figures of training go beside ``history.jsonl``.

    Fields:
        report_to: ``none``, ``tensorboard``, ``wandb``, or a list of these.
        every: optimiser steps between two logged ones; None for about five an epoch.
        run_name: what the run is called there; None for the tracker's choice.
    """

    report_to: Tracker | list[Tracker] = "none"
    every: int | None = None
    run_name: str | None = None

    def __post_init__(self) -> None:
        strict.check(self)
        if self.every is not None and self.every < 1:
            raise HeadEditError(f"every: found {self.every}, expected 1 or more.")

    @property
    def trackers(self) -> list[str]:
        """The trackers without ``none``."""
        given = [self.report_to] if isinstance(self.report_to, str) else self.report_to
        return [name for name in given if name != "none"]


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """A training run.

    Fields:
        model: the base model.
        data: the examples.
        spec: a spec file for an architecture without one; None to look it up.
        edits: the shape of the edits.
        recipe: ``name`` of the recipe, and any of its fields; here all of them.
        training: any field of ``transformers.TrainingArguments``. What a recipe has under a name of its own is taken
            over: ``num_train_epochs``, ``per_device_train_batch_size``, ``lr_scheduler_type``, ``weight_decay``,
            ``adam_epsilon``, ``max_grad_norm``, and ``learning_rate``, which sets the recipe's first rate of vectors
            while its others keep their usual ratio to it. Here only the others are left.
        logging: trackers.
        seed: of the order of examples and the gates' noise; the draw of examples has its own, ``data.seed``.
        seeds: number of runs, with the seeds from ``seed`` on, to see what they agree on.
        controls: also fit as many random heads, and every head without gates.
        cache_prefix: run the layers below the first edited one once for each example, where ``edits: layers`` leaves
            some out there; takes tokens × hidden size × bytes an element of host memory, see ``headedit.fit``.
        output: folder for the edits and everything else that the run leaves.
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
    cache_prefix: bool = False
    output: str | None = None

    def __post_init__(self) -> None:
        strict.check(self)
        if self.seeds < 1:
            raise HeadEditError(f"seeds: found {self.seeds}, expected 1 or more.")
        if self.output == "":
            raise HeadEditError("output: found an empty text, expected a folder.")
        if (self.controls or self.seeds > 1) and self.data.valid is None:
            raise HeadEditError(
                "data: valid: is missing; several seeds, and controls, are compared on validation examples."
            )
        name, recipe, rest = settle(self.recipe, self.training)
        object.__setattr__(self, "recipe", {"name": name, **vars(recipe)})
        object.__setattr__(self, "training", rest)

    @staticmethod
    def from_dict(data: object, where: str) -> "RunConfig":
        """A config from plain data, as it stands in a file."""
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
        """Fields of ``TrainingArguments`` for ``fit(..., arguments=...)``."""
        found = dict(self.training)
        if self.logging.trackers:
            found["report_to"] = self.logging.trackers
        if self.logging.every is not None:
            found["logging_steps"] = self.logging.every
        if self.logging.run_name is not None:
            found["run_name"] = self.logging.run_name
        return found

    def to_dict(self) -> dict[str, Any]:
        """Every field as plain data, from which ``from_dict`` makes an equal config."""
        plain = _plain(dataclasses.asdict(self))
        assert isinstance(plain, dict)
        return plain

    def absolute(self) -> "RunConfig":
        """The same with the full path of every file and folder that is there, so that it holds in any folder."""
        data = {name: _absolute(getattr(self.data, name)) for name in ("train", "valid", "test")}
        return dataclasses.replace(
            self,
            model=dataclasses.replace(self.model, name=_absolute(self.model.name)),
            data=dataclasses.replace(self.data, **data),
            spec=_absolute(self.spec),
            output=None if self.output is None else str(Path(self.output).absolute()),
        )

    def save(self, folder: "str | PathLike[str]") -> Path:
        """Writes ``run.yaml``, with which ``headedit train`` repeats the run; gives its path.

        Raises:
            HeadEditError: the folder cannot be written.
        """
        file = Path(folder) / RUN_YAML
        lead = f"# Resolved by headedit {__version__}. This run again: headedit train {RUN_YAML}\n"
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
    """A path as a full one, perhaps with ``:split``; what is no path that is there, such as a hub id, as it is."""
    if isinstance(source, list):
        return [_absolute(item) for item in source]
    if not isinstance(source, str):
        return source
    if Path(source).exists():
        return str(Path(source).absolute())
    folder, colon, split = source.rpartition(":")
    return f"{Path(folder).absolute()}:{split}" if colon and Path(folder).is_dir() else source
