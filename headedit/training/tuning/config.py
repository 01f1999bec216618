"""``TuneConfig``: a run of ``headedit tune`` as data, from a YAML file or the name of a config that comes with it."""

import copy
import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import torch
import yaml

from headedit.data.config import DataConfig
from headedit.errors import HeadEditError, suggest
from headedit.io import strict
from headedit.io.files import write_atomically
from headedit.io.yaml import read_yaml
from headedit.training.config import LoggingConfig, ModelConfig
from headedit.training.config.names import checked_training
from headedit.training.config.reading import find_file, shipped_configs, tune_configs
from headedit.training.sparse.sparse_tuning import SparseTuning
from headedit.training.sweep.config import EvaluateConfig
from headedit.training.tuning.methods import MethodConfig
from headedit.version import __version__

TUNE_YAML = "tune.yaml"
"""The settings of a run in its folder, with which the run can be repeated."""

_SHORT = {"method": "name", "sparse": "name"}
"""Sections that can be given as one word, and the key that it stands for."""


@dataclass(frozen=True, kw_only=True)
class SparseConfig:
    """Which layers each step trains; see ``headedit.SparseTuning``, whose settings these are.

    Fields:
        name: ``ist``, by importance, or ``rst``, at random.
        share: share of the layers that each step trains, rounded down.
        rollout_share: of IST: share of the layers that each roll-out attenuates, rounded down.
        rollouts: of IST: number of roll-outs per update of the scores.
        every: of IST: optimiser steps between updates.
        batch_size: of IST: training examples on which the losses of the roll-outs are computed.
        attenuation: of IST: factor on the adapters of a roll-out's layers.
        rate: of IST: factor on the change of a score.

    Raises:
        HeadEditError: a value is of a wrong type or out of range.
    """

    name: Literal["ist", "rst"]
    share: float = 0.25
    rollout_share: float = 0.5
    rollouts: int = 3
    every: int = 10
    batch_size: int = 16
    attenuation: float = 0.25
    rate: float = 10.0

    def __post_init__(self) -> None:
        strict.check(self)
        self.callback()

    def callback(self) -> SparseTuning:
        """The callback of a Trainer that draws the layers."""
        settings = {key: value for key, value in vars(self).items() if key != "name"}
        return SparseTuning(importance=self.name == "ist", **settings)


@dataclass(frozen=True, kw_only=True)
class TuneConfig:
    """A run of ``headedit tune``: model, examples, method, training and evaluation.

    In a YAML file the keys are the fields below; ``method: lora`` and ``sparse: ist`` stand for a section with this
    ``name`` alone.

    Fields:
        model: the base model; see ``headedit.training.config.ModelConfig``.
        data: the examples; see ``headedit.DataConfig``.
        method: the adapter; see ``MethodConfig``.
        sparse: which layers each step trains; see ``SparseConfig``. None for all.
        train_on_inputs: whether prompts are learned too and not the responses alone.
        training: any field of ``transformers.TrainingArguments``.
        evaluate: the tasks on which the tuned model is evaluated at the end; see ``EvaluateConfig``. None for none.
        logging: trackers; see ``headedit.training.config.LoggingConfig``.
        seed: seed of the adapter's start, the order of the examples, dropout, and the draws of layers.
        output: folder for the adapter and all other files of the run.

    Raises:
        HeadEditError: a value is of a wrong type or out of range, or a key is unknown.
    """

    model: ModelConfig
    data: DataConfig
    method: MethodConfig = field(default_factory=MethodConfig)
    sparse: SparseConfig | None = None
    train_on_inputs: bool = False
    training: dict[str, Any] = field(default_factory=dict)
    evaluate: EvaluateConfig | None = None
    logging: LoggingConfig = field(default_factory=LoggingConfig)
    seed: int = 0
    output: str | None = None

    def __post_init__(self) -> None:
        strict.check(self)
        if self.output == "":
            raise HeadEditError("output: found an empty string, expected a folder.")
        object.__setattr__(self, "training", checked_training(self.training))

    def arguments(self) -> dict[str, Any]:
        """The fields of ``TrainingArguments`` that the config gives."""
        return {**self.training, **self.logging.arguments()}

    def check_device(self) -> None:
        """Raises a HeadEditError where training in float16 is asked for and no GPU can do it."""
        if self.training.get("fp16") and not torch.cuda.is_available():
            raise HeadEditError(
                "training: fp16: needs a GPU, and there is none here. Leave it out and load the weights in another "
                "dtype: --set training.fp16=false --set model.dtype=float32."
            )

    def plain(self) -> dict[str, Any]:
        """Every field as plain data, with absolute paths of existing files and folders."""
        found = dataclasses.asdict(self)
        for name in ("train", "valid", "test"):
            found["data"][name] = _absolute(found["data"][name])
        found["model"]["name"] = _absolute(found["model"]["name"])
        if found["evaluate"] is not None:
            found["evaluate"]["data"] = _absolute(found["evaluate"]["data"])
        return found

    def save(self, folder: Path) -> Path:
        """Writes ``tune.yaml``, with which ``headedit tune`` repeats the run, and returns its path."""
        file = folder / TUNE_YAML
        lead = f"# Resolved by headedit {__version__}. To repeat this run: headedit tune {TUNE_YAML}\n"
        plain = self.plain() | {"output": None if self.output is None else str(Path(self.output).absolute())}
        text = yaml.safe_dump(plain, sort_keys=False, allow_unicode=True)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            write_atomically(file, (lead + text).encode())
        except OSError as error:
            raise HeadEditError(f"{file}: cannot be written ({error.strerror}).") from None
        return file


def read_tune(config: "str | PathLike[str] | None" = None, overrides: Mapping[str, Any] | None = None) -> TuneConfig:
    """Reads the config of a run of ``headedit tune``.

    Args:
        config: a YAML file, the folder of a run, or the name of a config that comes with headedit; None if the
            overrides are a complete config.
        overrides: values by key, which replace those of the config; a key is a path such as ``method.rank``.

    Raises:
        HeadEditError: there is no such file or name, or its content is wrong; the message names file, key and value.
    """
    where, data = ("the options", {}) if config is None else _content(_find(config))
    for section, name in _SHORT.items():
        if isinstance(data.get(section), str):
            data[section] = {name: data[section]}
    for key, value in (overrides or {}).items():
        path = (key, _SHORT[key]) if key in _SHORT and isinstance(value, str) else tuple(key.split("."))
        inside = value if isinstance(value, Mapping) and len(path) == 1 else None
        for name, item in [] if inside is None else inside.items():
            strict.put(data, (*path, name), item)
        if inside is None:
            strict.put(data, path, value)
    return strict.build(TuneConfig, data, where)


def _find(config: "str | PathLike[str]") -> Path:
    known = tune_configs()
    found = find_file(config, TUNE_YAML, known)
    if found is not None:
        return found
    other = f" It is a config of headedit train: headedit train {config}." if str(config) in shipped_configs() else ""
    raise HeadEditError(
        f"{config}: there is no such file, and headedit tune has no config of this name.{other}"
        f"{suggest(str(config), known, title='Configs')}"
    )


def _content(file: Path) -> tuple[str, dict[str, Any]]:
    found = read_yaml(file)
    if not isinstance(found, Mapping):
        raise HeadEditError(f"{file}: expected a mapping of keys to values, found {type(found).__name__}.")
    if "recipe" in found:
        raise HeadEditError(f"{file}: has a 'recipe', so it is a config of another command: headedit train {file}.")
    return str(file), copy.deepcopy(dict(found))


def _absolute(source: Any) -> Any:
    if isinstance(source, list):
        return [_absolute(item) for item in source]
    return str(Path(source).absolute()) if isinstance(source, str) and os.path.exists(source) else source
