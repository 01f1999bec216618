"""Many runs of one config: a list of tasks, seeds and fields, each run in a folder of its own."""

import dataclasses
import itertools
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

from headedit.errors import HeadEditError
from headedit.io import strict
from headedit.io.yaml import read_yaml
from headedit.training.config import RunConfig, read_run


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """What every trained run of a sweep is measured on.

    Fields:
        tasks: names or files of tasks; ``{task}`` stands for the task of the run.
        data: file, folder or hub id of the tasks' records; None for where the tasks say. ``{task}`` as well.
        limit: number of examples; None for all.
        batch_size: examples a batch.
        changes: fields of the tasks that are to be different, such as ``num_beams: 1``.
    """

    tasks: list[str]
    data: str | None = None
    limit: int | None = None
    batch_size: int = 32
    changes: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class SweepConfig:
    """A sweep: every task with every combination of fields and every seed.

    Fields:
        base: the config that all runs begin from: a file, beside the sweep's or not, or a name.
        output: folder for all runs and the table.
        set: changes of all runs, key by key as ``--set`` takes them; in a text ``{task}`` and ``{seed}`` stand for
            those of the run.
        tasks: names, to stand for ``{task}``; or for each name changes of its own. Empty for one task without a name.
        fields: lists of values by key, such as ``recipe.name: [jola, localise]``.
        seeds: of the runs.
        evaluate: what to measure each run on; None for its losses alone.
    """

    base: str
    output: str
    set: dict[str, Any] = field(default_factory=dict)
    tasks: list[str] | dict[str, dict[str, Any]] = field(default_factory=list)
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
                raise HeadEditError(f"{key}: found {values}, in which a value stands twice.")
        for key in (*self.set, *self.fields):
            if key in ("seed", "seeds", "output"):
                raise HeadEditError(f"'{key}' is for the sweep to set; use its own 'seeds' and 'output'.")
        if len({*self.tasks}) < len(self.tasks):
            raise HeadEditError(f"tasks: found {self.tasks}, in which a name stands twice.")

    @staticmethod
    def read(file: "str | PathLike[str]", changes: Mapping[str, Any] | None = None) -> "SweepConfig":
        """The sweep in a YAML file.

        Args:
            file: its path.
            changes: more of ``set``, over those of the file.

        Raises:
            HeadEditError: it cannot be read, or is not right.
        """
        path = Path(file)
        sweep = strict.build(SweepConfig, read_yaml(path), str(path))
        base = path.parent / sweep.base
        return dataclasses.replace(
            sweep, base=str(base) if base.is_file() else sweep.base, set={**sweep.set, **(changes or {})}
        )


@dataclass(frozen=True, kw_only=True)
class PlannedRun:
    """One run of a sweep.

    Fields:
        task: its name; empty where the sweep has none.
        fields: the values of the fields that the sweep lists.
        seed: its seed.
        config: all of it.
        evaluate: what to measure it on.
    """

    task: str
    fields: dict[str, Any]
    seed: int
    config: RunConfig
    evaluate: EvaluateConfig | None

    @property
    def folder(self) -> Path:
        """Where it is."""
        assert self.config.output is not None
        return Path(self.config.output)

    @property
    def name(self) -> str:
        """Task, fields and seed in short."""
        values = [f"{key}={value}" for key, value in self.fields.items()]
        return ", ".join([*([self.task] if self.task else []), *values, f"seed {self.seed}"])


def plan_sweep(sweep: SweepConfig) -> list[PlannedRun]:
    """The runs of a sweep, all of them checked, in the order of tasks, fields and seeds.

    Raises:
        HeadEditError: the config of a run is not right.
    """
    tasks = sweep.tasks if isinstance(sweep.tasks, dict) else {name: {} for name in sweep.tasks}
    planned = []
    for task, own in (tasks or {"": {}}).items():
        for values in itertools.product(*sweep.fields.values()):
            fields = dict(zip(sweep.fields, values, strict=True))
            for seed in sweep.seeds:
                names = {"{task}": task, "{seed}": seed}
                folder = Path(sweep.output).joinpath(*_folders(task, fields, seed))
                changes = _filled({**sweep.set, **own, **fields}, names)
                config = read_run(sweep.base, {**changes, "seed": seed, "output": str(folder)})
                if config.seeds > 1:
                    raise HeadEditError(f"{sweep.base}: seeds: found {config.seeds}; a sweep runs its own seeds.")
                evaluate = sweep.evaluate and EvaluateConfig(**_filled(vars(sweep.evaluate), names))
                planned.append(PlannedRun(task=task, fields=fields, seed=seed, config=config, evaluate=evaluate))
    return planned


def _folders(task: str, fields: Mapping[str, Any], seed: int) -> list[str]:
    parts = [task, *(f"{key}={value}" for key, value in fields.items()), f"seed-{seed}"]
    return [re.sub(r"[^\w.=,+-]+", "_", part) for part in parts if part]


def _filled(value: Any, names: Mapping[str, Any]) -> Any:
    """Plain data with the names in braces replaced; a text that is nothing but a name becomes its value."""
    if isinstance(value, Mapping):
        return {key: _filled(item, names) for key, item in value.items()}
    if isinstance(value, list):
        return [_filled(item, names) for item in value]
    if not isinstance(value, str):
        return value
    if value in names:
        return names[value]
    for name, stands_for in names.items():
        value = value.replace(name, str(stands_for))
    return value
