"""What ``--dry-run`` of ``headedit sweep`` and ``headedit compare`` finds wrong before anything is trained."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from headedit.errors import HeadEditError

if TYPE_CHECKING:
    from headedit.training.sweep.config import PlannedRun


def refuse(problems: Sequence[str]) -> None:
    """Raises a HeadEditError that lists problems, if there are any."""
    if len(problems) == 1:
        raise HeadEditError(problems[0])
    if problems:
        raise HeadEditError("\n".join([f"{len(problems)} problems:", *(f"- {problem}" for problem in problems)]))


def problems_of_sweep(planned: "Sequence[PlannedRun]") -> list[str]:
    """Why runs of a sweep that are not finished cannot be started or evaluated, each reason once."""
    from headedit.training.dry_run import Checked
    from headedit.training.sweep.run import run_state

    checked = Checked()
    found: dict[str, str] = {}
    for run in planned:
        reason = None if run_state(run.config) == "finished" else checked.problem(run.config)
        for problem in [reason, _of_evaluation(run)]:
            if problem is not None:
                found.setdefault(problem, run.name)
    return [f"{name}: {problem}" for problem, name in found.items()]


def _of_evaluation(run: "PlannedRun") -> str | None:
    """Why a run cannot be evaluated: a task that does not exist, or whose first record cannot be read."""
    from headedit.evaluation.tasks.records import load_rows
    from headedit.evaluation.tasks.task_files import find_tasks

    if run.evaluate is None:
        return None
    try:
        for task in find_tasks(run.evaluate.tasks, **run.evaluate.changes):
            if next(iter(load_rows(task, run.evaluate.data)), None) is None:
                return f"{task.name}: has no records."
    except HeadEditError as error:
        return str(error)
    return None
