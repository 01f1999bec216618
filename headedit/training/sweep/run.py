"""Runs a sweep: skips finished runs, resumes stopped ones, and collects the figures of all."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from torch import nn

from headedit.edits import HeadEdits, load
from headedit.errors import HeadEditError
from headedit.runs.files import RUN_FILE, RUN_YAML
from headedit.runs.folder import CHECKPOINTS, JOURNAL
from headedit.runs.run import Run
from headedit.runs.stability import Spread
from headedit.training.config import ModelConfig, RunConfig, read_run
from headedit.training.sweep.config import PlannedRun
from headedit.training.train import train

RunState = Literal["new", "stopped", "finished"]
Measure = Callable[[PlannedRun, Callable[[], HeadEdits]], dict[str, float]]
"""Returns further figures of a run; calling its second argument attaches the run's edits, if they are needed."""

_FIGURES = {
    "validation loss": "best_eval_loss",
    "test loss": "test_loss",
    "base test loss": "test_loss_base",
    "seconds": "seconds",
}


@dataclass(frozen=True, kw_only=True)
class SweepRow:
    """The result of one run.

    Fields:
        task: name of the task.
        fields: the values of the fields that the sweep lists.
        seed: the seed.
        folder: the output folder.
        figures: by name: losses in nats per token, seconds, number of edited heads, and scores.
        error: the message of the error with which the run failed; None if it did not fail.
    """

    task: str
    fields: dict[str, Any]
    seed: int
    folder: str
    figures: dict[str, float] = field(default_factory=dict)
    error: str | None = None


@dataclass(frozen=True, kw_only=True)
class SweepGroup:
    """Mean and spread of the runs of one task over its seeds, or of all tasks, with the same fields.

    Fields:
        task: name of the task; ``mean`` for the mean of all tasks.
        over: what mean and spread are over, ``seeds`` or ``tasks``.
        fields: the values of the fields that the sweep lists.
        runs: number of runs that succeeded.
        failed: number of runs that failed.
        figures: mean and spread of each figure.
    """

    task: str
    over: Literal["seeds", "tasks"]
    fields: dict[str, Any]
    runs: int
    failed: int
    figures: dict[str, Spread]


def run_sweep(
    planned: Sequence[PlannedRun],
    *,
    measure: Measure | None = None,
    say: Callable[[str], None] = print,
    progress: bool = True,
) -> Iterator[list[SweepRow]]:
    """Runs all unfinished runs, and yields the rows so far after every run.

    The base model is loaded once for all runs that share it. A run that fails with a HeadEditError is recorded as
    failed, and the others continue; the next call tries it again.

    Args:
        planned: the runs, see ``plan_sweep``.
        measure: returns further figures of a run; None for its losses alone.
        say: called with a line about each run.
        progress: show progress bars.

    Raises:
        HeadEditError: an output folder holds a run with another config.
    """
    states = [run_state(run.config) for run in planned]
    base = _LoadedModel()
    rows: list[SweepRow] = []
    for number, (run, state) in enumerate(zip(planned, states, strict=True), start=1):
        doing = {"new": "starts", "stopped": "resumes", "finished": "is finished"}[state]
        say(f"[{number}/{len(planned)}] {run.name}: {doing}")
        identity: dict[str, Any] = {"task": run.task, "fields": run.fields, "seed": run.seed, "folder": str(run.folder)}
        try:
            rows.append(SweepRow(**identity, figures=_run_figures(run, state, base, measure, progress)))
        except HeadEditError as error:
            base.drop()
            say(f"{run.name}: failed: {error}")
            rows.append(SweepRow(**identity, error=str(error)))
        yield list(rows)


def run_state(config: RunConfig) -> RunState:
    """Whether a run is new, was stopped, or is finished.

    Raises:
        HeadEditError: its folder holds a run with another config; the message says what differs.
    """
    assert config.output is not None
    folder = Path(config.output)
    if not (folder / RUN_YAML).is_file():
        return "new"
    before, now = read_run(folder / RUN_YAML).absolute().to_dict(), config.absolute().to_dict()
    differing = sorted(_differing(before, now))
    if differing:
        raise HeadEditError(
            f"{folder}: holds a run that differs in {', '.join(differing)}. Choose another output folder, or remove "
            "this one."
        )
    file = folder / RUN_FILE
    if not file.is_file() or (folder / CHECKPOINTS / JOURNAL).is_dir():
        return "stopped"
    measured = config.data.test is None or "test_loss" in Run.read(folder).record
    return "finished" if measured else "stopped"


def grouped(rows: Sequence[SweepRow]) -> list[SweepGroup]:
    """Mean and spread of every task over its seeds, then, if there are several tasks, their means."""
    groups: dict[tuple[str, str], list[SweepRow]] = {}
    for row in rows:
        groups.setdefault((row.task, json.dumps(row.fields)), []).append(row)
    found = [_group(members[0].task, members) for members in groups.values()]
    by_fields: dict[str, list[SweepGroup]] = {}
    for group in found:
        by_fields.setdefault(json.dumps(group.fields), []).append(group)
    return found + [_mean(members) for members in by_fields.values() if len(members) > 1]


def sweep_record(rows: Sequence[SweepRow]) -> dict[str, Any]:
    """Rows and groups as plain data for JSON."""
    return {"runs": [asdict(row) for row in rows], "groups": [asdict(group) for group in grouped(rows)]}


def figure_names(rows: Sequence[SweepRow]) -> list[str]:
    """The names of all figures of any row, in the order in which they first occur."""
    return list(dict.fromkeys(name for row in rows for name in row.figures))


class _LoadedModel:
    """Holds the base model that was loaded last."""

    def __init__(self) -> None:
        self._config: ModelConfig | None = None
        self._model: nn.Module | None = None

    def model(self, config: ModelConfig) -> nn.Module:
        """The base model of a config, without edits; loads it if it is not the one held."""
        if self._model is None or config != self._config:
            self.drop()
            self._config, self._model = config, config.load()
        return self._model

    def drop(self) -> None:
        """Releases the model."""
        self._config = self._model = None


def _run_figures(
    planned: PlannedRun, state: RunState, base: _LoadedModel, measure: Measure | None, progress: bool
) -> dict[str, float]:
    config = planned.config
    edits: list[HeadEdits] = []
    if state != "finished":
        run = train(config, resume=state == "stopped", base=base.model(config.model), progress=progress)
        assert run.edits is not None
        edits.append(run.edits)

    def handle() -> HeadEdits:
        if not edits:
            edits.append(load(base.model(config.model), planned.folder, spec=config.spec))
        return edits[0]

    record = Run.read(planned.folder).record
    figures = {name: float(record[key]) for name, key in _FIGURES.items() if record.get(key) is not None}
    figures["edited heads"] = float(record["open"]["any"]["open"])
    if measure is not None:
        figures |= measure(planned, handle)
    for attached in edits:
        attached.detach()
    return figures


def _group(task: str, members: Sequence[SweepRow]) -> SweepGroup:
    done = [row for row in members if row.error is None]
    figures = {
        name: Spread.of([row.figures[name] for row in done if name in row.figures]) for name in figure_names(done)
    }
    return SweepGroup(
        task=task,
        over="seeds",
        fields=members[0].fields,
        runs=len(done),
        failed=len(members) - len(done),
        figures=figures,
    )


def _mean(groups: Sequence[SweepGroup]) -> SweepGroup:
    """The mean of the tasks' means, for every figure that all of them have."""
    names = [name for name in groups[0].figures if all(name in group.figures for group in groups)]
    return SweepGroup(
        task="mean",
        over="tasks",
        fields=groups[0].fields,
        runs=sum(group.runs for group in groups),
        failed=sum(group.failed for group in groups),
        figures={name: Spread.of([group.figures[name].mean for group in groups]) for name in names},
    )


def _differing(before: Any, now: Any, path: str = "") -> Iterator[str]:
    if isinstance(before, dict) and isinstance(now, dict):
        for key in {**before, **now}:
            yield from _differing(before.get(key), now.get(key), f"{path}.{key}" if path else key)
    elif before != now:
        yield path
