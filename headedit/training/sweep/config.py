"""``SweepConfig``: many runs of one config, over lists of tasks, fields and seeds, each in a folder of its own."""

import dataclasses
import itertools
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

from headedit.errors import HeadEditError, suggest
from headedit.io import strict
from headedit.io.yaml import read_yaml
from headedit.training.config import RunConfig, read_run

_MOST_RUNS = 2_000
_FOLDER = Path(__file__).resolve().parent / "shipped"

CONFIGURATION = "configuration"
"""The name of a run's configuration among its fields."""


def shipped_sweeps() -> dict[str, Path]:
    """The sweeps that come with headedit, by name."""
    return {file.stem: file for file in sorted(_FOLDER.glob("*.yaml"))}


def find_sweep(sweep: "str | PathLike[str]") -> Path:
    """The path of a sweep's file, given itself or as the name of a sweep that comes with headedit.

    Raises:
        HeadEditError: there is no such file or name.
    """
    path, shipped = Path(sweep), shipped_sweeps()
    if path.exists() or path.suffix in (".yaml", ".yml"):
        return path
    if str(sweep) in shipped:
        return shipped[str(sweep)]
    raise HeadEditError(
        f"{sweep}: there is no such file, and headedit has no sweep of this name."
        f"{suggest(str(sweep), shipped, title='Sweeps')}"
    )


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """The evaluation of every run of a sweep. In strings, ``{task}`` and ``{seed}`` stand for those of the run.

    Fields:
        tasks: names or files of tasks.
        data: file, folder or hub id of the tasks' records; None for the source that each task names.
        limit: largest number of examples per task; None for all.
        batch_size: examples per batch.
        changes: fields of the tasks to change, such as ``num_beams: 1``.
        chosen: evaluate, of each task, only the runs of the fields that the validation loss chooses.
    """

    tasks: list[str]
    data: str | None = None
    limit: int | None = None
    batch_size: int = 32
    changes: dict[str, Any] = field(default_factory=dict)
    chosen: bool = False


@dataclass(frozen=True, kw_only=True)
class SweepConfig:
    """A sweep: a run for every task, every combination of fields and every seed.

    Fields:
        base: the config that all runs start from: a file, relative to the sweep's own file or to the working folder,
            or the name of a config that comes with headedit.
        output: folder for all runs and the tables.
        set: overrides of all runs, by key as in ``--set``; in strings, ``{task}`` and ``{seed}`` stand for those of the
            run.
        tasks: names of tasks, which replace ``{task}``; or a mapping from each name to overrides of its own. Empty for
            one task without a name.
        configurations: overrides by name, of which each run has one, such as ``slow: {vector_lr: 1e-3}``; with fields,
            every combination of a configuration with them.
        fields: lists of values by key, such as ``recipe.name: [jola, localise]``.
        seeds: the seeds of the runs.
        evaluate: how each run is evaluated; None for its losses alone.

    Raises:
        HeadEditError: a list is empty or has a value twice, or a key is one that the sweep sets itself.
    """

    base: str
    output: str
    set: dict[str, Any] = field(default_factory=dict)
    tasks: list[str] | dict[str, dict[str, Any]] = field(default_factory=list)
    configurations: dict[str, dict[str, Any]] = field(default_factory=dict)
    fields: dict[str, list[Any]] = field(default_factory=dict)
    seeds: list[int] = field(default_factory=lambda: [0])
    evaluate: EvaluateConfig | None = None

    def __post_init__(self) -> None:
        strict.check(self)
        lists = {"seeds": self.seeds, **{f"fields: {key}": values for key, values in self.fields.items()}}
        for key, values in lists.items():
            if not values:
                raise HeadEditError(f"{key}: the list is empty, expected at least one value.")
            if len({repr(value) for value in values}) < len(values):
                raise HeadEditError(f"{key}: found {values}, in which a value occurs twice.")
        own = [key for changes in self.configurations.values() for key in changes]
        for key in (*self.set, *self.fields, *own):
            if key in ("seed", "seeds", "output"):
                raise HeadEditError(f"'{key}' is set by the sweep; use its own 'seeds' and 'output'.")
        if len({*self.tasks}) < len(self.tasks):
            raise HeadEditError(f"tasks: found {self.tasks}, in which a name occurs twice.")

    @staticmethod
    def read(file: "str | PathLike[str]", changes: Mapping[str, Any] | None = None) -> "SweepConfig":
        """Reads a sweep from a YAML file.

        Args:
            file: the path of the file, or the name of a sweep that comes with headedit.
            changes: further values of ``set``, which replace those of the file.

        Raises:
            HeadEditError: the file cannot be read, or its content is wrong.
        """
        path = find_sweep(file)
        sweep = strict.build(SweepConfig, read_yaml(path), str(path))
        base = path.parent / sweep.base
        return dataclasses.replace(
            sweep, base=str(base) if os.path.isfile(base) else sweep.base, set={**sweep.set, **(changes or {})}
        )

    def only(self, tasks: Sequence[str]) -> "SweepConfig":
        """The same sweep with some of its tasks.

        Raises:
            HeadEditError: it has no such task.
        """
        for name in tasks:
            if name not in self.tasks:
                raise HeadEditError(f"The sweep has no task '{name}'.{suggest(name, self.tasks, title='Tasks')}")
        left = (
            {name: self.tasks[name] for name in self.tasks if name in tasks}
            if isinstance(self.tasks, dict)
            else [name for name in self.tasks if name in tasks]
        )
        return dataclasses.replace(self, tasks=left)


@dataclass(frozen=True, kw_only=True)
class PlannedRun:
    """One run of a sweep.

    Fields:
        task: name of the task; empty if the sweep has no tasks.
        fields: the values of the fields that the sweep lists, and the name of the configuration if it has some.
        seed: the seed.
        config: the config of the run.
        evaluate: how the run is evaluated; None for its losses alone.
    """

    task: str
    fields: dict[str, Any]
    seed: int
    config: RunConfig
    evaluate: EvaluateConfig | None

    @property
    def folder(self) -> Path:
        """The output folder of the run."""
        assert self.config.output is not None
        return Path(self.config.output)

    @property
    def name(self) -> str:
        """Task, fields and seed as a short name."""
        values = [f"{key}={value}" for key, value in self.fields.items()]
        return ", ".join([*([self.task] if self.task else []), *values, f"seed {self.seed}"])


def plan_sweep(sweep: SweepConfig) -> list[PlannedRun]:
    """The runs of a sweep, all checked, in the order of tasks, fields and seeds.

    Raises:
        HeadEditError: the config of a run is wrong, two runs would have the same folder, or there are more runs than
            anyone means to start.
    """
    tasks = sweep.tasks if isinstance(sweep.tasks, dict) else {name: {} for name in sweep.tasks}
    lists = {**({CONFIGURATION: list(sweep.configurations)} if sweep.configurations else {}), **sweep.fields}
    runs = math.prod([len(tasks or [""]), *map(len, lists.values()), len(sweep.seeds)])
    if runs > _MOST_RUNS:
        raise HeadEditError(
            f"The sweep has {runs:,} runs: every task with every combination of fields and every seed. Plan at most "
            f"{_MOST_RUNS:,} in one file."
        )
    planned = []
    for task, own in (tasks or {"": {}}).items():
        for values in itertools.product(*lists.values()):
            fields = dict(zip(lists, values, strict=True))
            listed = {key: value for key, value in fields.items() if key != CONFIGURATION}
            configuration = sweep.configurations.get(fields.get(CONFIGURATION, ""), {})
            for seed in sweep.seeds:
                names = {"{task}": task, "{seed}": seed}
                folder = Path(sweep.output).joinpath(*_folders(task, fields, seed))
                changes = _filled({**sweep.set, **own, **configuration, **listed}, names)
                config = read_run(sweep.base, {**changes, "seed": seed, "output": str(folder)})
                if config.seeds > 1:
                    raise HeadEditError(f"{sweep.base}: seeds: found {config.seeds}; a sweep runs its own seeds.")
                evaluate = sweep.evaluate and EvaluateConfig(**_filled(vars(sweep.evaluate), names))
                planned.append(PlannedRun(task=task, fields=fields, seed=seed, config=config, evaluate=evaluate))
    by_folder: dict[Path, PlannedRun] = {}
    for run in planned:
        other = by_folder.setdefault(run.folder, run)
        if other is not run:
            raise HeadEditError(
                f"'{other.name}' and '{run.name}' would have the same folder, {run.folder}: in names of folders, other "
                "characters than letters, digits and .=,+-_ are written as _. Rename one of them."
            )
    return planned


def _folders(task: str, fields: Mapping[str, Any], seed: int) -> list[str]:
    parts = [task, *(f"{key}={value}" for key, value in fields.items()), f"seed-{seed}"]
    return [re.sub(r"[^\w.=,+-]+", "_", part) for part in parts if part]


def _filled(value: Any, names: Mapping[str, Any]) -> Any:
    """Plain data with the names in braces replaced; a string that is just a name becomes the value itself."""
    if isinstance(value, Mapping):
        return {key: _filled(item, names) for key, item in value.items()}
    if isinstance(value, list):
        return [_filled(item, names) for item in value]
    if not isinstance(value, str):
        return value
    if value in names:
        return names[value]
    for name, replacement in names.items():
        value = value.replace(name, str(replacement))
    return value
