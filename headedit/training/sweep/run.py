"""Runs a sweep: skips finished runs, resumes stopped ones, and collects the figures of all."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal

from torch import nn

from headedit.edits import HeadEdits, load
from headedit.errors import HeadEditError
from headedit.io.launch import as_if_alone
from headedit.io.processes import Processes
from headedit.runs.files import RUN_FILE, RUN_YAML
from headedit.runs.folder import CHECKPOINTS, JOURNAL
from headedit.runs.run import Run
from headedit.training.config import ModelConfig, RunConfig, read_run
from headedit.training.memory_plan.check import check_memory
from headedit.training.sweep.config import PlannedRun
from headedit.training.sweep.rows import SECONDS, VALIDATION_LOSS, SweepRow
from headedit.training.sweep.sharing import check_can_be_shared_out
from headedit.training.train import longest, prepare, train

RunState = Literal["new", "stopped", "finished"]
Measure = Callable[[PlannedRun, Callable[[], HeadEdits]], dict[str, float]]
"""Returns further figures of a run; calling its second argument attaches the run's edits, if they are needed."""

_FIGURES = {
    VALIDATION_LOSS: "best_eval_loss",
    "test loss": "test_loss",
    "base test loss": "test_loss_base",
    SECONDS: "seconds",
}


def run_sweep(
    planned: Sequence[PlannedRun],
    *,
    measure: Measure | None = None,
    say: Callable[[str], None] = print,
    progress: bool = True,
    processes: Processes | None = None,
    memory_check: bool = True,
) -> Iterator[list[SweepRow]]:
    """Runs all unfinished runs, and yields the rows so far after every run.

    Several processes share whole runs out: each trains the next that none has begun, alone and on one GPU, so that the
    results are those of one process. The first yields the rows of all, the others none.

    The base model is loaded once for all runs that share it. A run that fails with a HeadEditError is recorded as
    failed, and the others continue; the next call tries it again.

    Args:
        planned: the runs, see ``plan_sweep``.
        measure: returns further figures of a run; None for its losses alone.
        say: called with a line about each run.
        progress: show progress bars.
        processes: which share the runs out; by default this one alone.
        memory_check: refuse a run for which a model would be loaded and that needs more memory than is free.

    Raises:
        HeadEditError: an output folder holds a run with another config, or a run itself needs several processes.
    """
    processes = Processes() if processes is None else processes
    if processes.size > 1:
        check_can_be_shared_out(planned)
    states = processes.from_first(lambda: [run_state(run.config) for run in planned])
    base = _LoadedModel()
    own: set[int] = set()

    def row(job: int) -> SweepRow:
        run, state = planned[job], states[job]
        own.add(job)
        doing = {"new": "starts", "stopped": "resumes", "finished": "is finished"}[state]
        say(f"[{job + 1}/{len(planned)}] {run.name}: {doing}")
        identity: dict[str, Any] = {"task": run.task, "fields": run.fields, "seed": run.seed, "folder": str(run.folder)}
        try:
            figures = _run_figures(run, state, base, measure, progress and processes.first, memory_check)
            return SweepRow(**identity, figures=figures)
        except HeadEditError as error:
            base.drop()
            say(f"{run.name}: failed: {error}")
            return SweepRow(**identity, error=str(error))

    with as_if_alone() if processes.size > 1 else nullcontext():
        for rows in processes.share_out(len(planned), row):
            for job in sorted(rows.keys() - own):
                own.add(job)
                how = "has ended" if rows[job].error is None else f"failed: {rows[job].error}"
                say(f"[{job + 1}/{len(planned)}] {planned[job].name}: {how}, in another process")
            yield list(rows.values())


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


class _LoadedModel:
    """Holds the base model that was loaded last."""

    def __init__(self) -> None:
        self._config: ModelConfig | None = None
        self._model: nn.Module | None = None

    def holds(self, config: ModelConfig) -> bool:
        """Whether the base model of a config is loaded."""
        return self._model is not None and config == self._config

    def model(self, config: ModelConfig) -> nn.Module:
        """The base model of a config, without edits; loads it if it is not the one held."""
        if self._model is None or config != self._config:
            self.drop()
            self._config, self._model = config, config.load()
        return self._model

    def drop(self) -> None:
        """Releases the model."""
        self._config = self._model = None


def _check_memory(config: RunConfig, progress: bool) -> None:
    """Refuses a run that needs more memory than is free; where its data cannot be read, its training says so."""
    try:
        data, _ = prepare(config, progress=progress)
    except HeadEditError:
        return
    check_memory(config, longest(data))


def _run_figures(
    planned: PlannedRun,
    state: RunState,
    base: _LoadedModel,
    measure: Measure | None,
    progress: bool,
    memory_check: bool,
) -> dict[str, float]:
    config = planned.config
    edits: list[HeadEdits] = []
    if state != "finished":
        if memory_check and not base.holds(config.model):
            _check_memory(config, progress)
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


def _differing(before: Any, now: Any, path: str = "") -> Iterator[str]:
    if isinstance(before, dict) and isinstance(now, dict):
        for key in {**before, **now}:
            yield from _differing(before.get(key), now.get(key), f"{path}.{key}" if path else key)
    elif before != now:
        yield path
