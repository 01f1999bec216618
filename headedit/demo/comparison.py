"""The demo's tasks as what methods are compared on: the embedded model learns a task that no prompt names."""

from headedit.bench.compare.tasks import TaskSet
from headedit.demo import MODEL_FOLDER, tasks


def uncued_records(task: str, count: int, seed: int, exclude: frozenset[str]) -> list[dict[str, str]]:
    """Records of a task whose prompts do not name it; see ``TaskSet``."""
    return tasks.records(task, count, cued=False, seed=seed, exclude=exclude)


DEMO_TASKS = TaskSet(
    title="The embedded model", model=str(MODEL_FOLDER), names=tuple(tasks.TASKS), records=uncued_records
)
"""The embedded model and its six tasks, for ``headedit.bench.compare.tasks.compare_methods``."""
