"""Every method on a set of tasks: what each makes of a few examples, and of many."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from headedit.bench.compare.methods import Changes, Problem, check_changes, method, methods
from headedit.bench.parallel import run_units
from headedit.bench.results import BenchResult, Row, counted, grouped, mean, whole_mean
from headedit.data import to_pair
from headedit.data.batches import PadRight
from headedit.data.encoding import encode
from headedit.data.losses import example_losses
from headedit.errors import HeadEditError, suggest
from headedit.evaluation import exact_match
from headedit.hf.loading import load_model, load_tokenizer
from headedit.interpret.labels import label

SIZES = (8, 24, 64, 200)
TEST = 500
LARGEST = 1000
"""The most training examples. Test prompts are in none of that many, so they are the same for any smaller number."""

_TEST_SEED = 1_000_003  # apart from the seeds that people give


@dataclass(frozen=True, kw_only=True)
class TaskSet:
    """A model and the tasks that it is taught.

    Fields:
        title: what the model is called in titles.
        model: folder or hub id of the model and its tokenizer.
        names: the names of the tasks.
        records: makes that many records of a task with distinct prompts, from a seed, none of the prompts among those
            given: ``records(task, count, seed, exclude)``. Several processes need a function at the top of a module.
    """

    title: str
    model: str
    names: tuple[str, ...]
    records: Callable[[str, int, int, frozenset[str]], list[dict[str, str]]]

    def examples(
        self, task: str, size: int, seed: int, test_examples: int = TEST
    ) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
        """Training and test pairs of a task; no prompt is in both, and the test pairs are the same for every size.

        Args:
            task: one of ``names``.
            size: number of training pairs, up to ``LARGEST``; fewer are the first of more.
            seed: of both.
            test_examples: number of test pairs.

        Raises:
            HeadEditError: there is no such task, or a number is impossible.
        """
        if task not in self.names:
            raise HeadEditError(f"There is no task '{task}'.{suggest(task, self.names, title='Tasks')}")
        if not 1 <= size <= LARGEST:
            raise HeadEditError(f"sizes: found {size}, expected 1 to {LARGEST} examples.")
        if test_examples < 1:
            raise HeadEditError(f"test_examples: found {test_examples}, expected 1 or more.")
        pool = self.records(task, LARGEST, seed, frozenset())
        seen = frozenset(row["prompt"] for row in pool)
        unseen = self.records(task, test_examples, _TEST_SEED + seed, seen)
        train, test = ([to_pair(row, f"{task} example") for row in rows] for rows in (pool[:size], unseen))
        return train, test


def check_comparison(
    task_set: TaskSet,
    tasks: Sequence[str],
    sizes: Sequence[int],
    seeds: Sequence[int],
    names: Sequence[str] | None = None,
    *,
    test_examples: int = TEST,
    changes: Changes | None = None,
) -> None:
    """Checks what ``compare_methods`` is given, before any work is done.

    Raises:
        HeadEditError: there is no such task or method, a number is impossible, or there is nothing to run.
    """
    chosen = list(methods()) if names is None else list(names)
    check_changes(chosen, changes, planted=False)
    if not (chosen and tasks and sizes and seeds):
        raise HeadEditError("There is nothing to run: give at least one task, size, seed and method.")
    for task in tasks:
        for size in sizes:
            task_set.examples(task, size, 0, test_examples)


def compare_methods(
    task_set: TaskSet,
    tasks: Sequence[str] | None = None,
    sizes: Sequence[int] = SIZES,
    seeds: Sequence[int] = range(3),
    names: Sequence[str] | None = None,
    *,
    test_examples: int = TEST,
    changes: Changes | None = None,
    jobs: int = 1,
    progress: bool = True,
) -> BenchResult:
    """Teaches a model tasks by every method, from few examples to many.

    LoRA has the best of three learning rates by the test score, which flatters it; the others have their defaults.

    Args:
        task_set: the model and its tasks.
        tasks: names of some of the tasks; by default all.
        sizes: numbers of training examples; none of them is given as a validation set.
        seeds: of examples and training.
        names: methods; by default all, and the unedited model.
        test_examples: number of unseen examples.
        changes: of the methods' settings.
        jobs: number of processes.
        progress: show a bar.

    Returns:
        A row per run (see ``compare_unit``); in the summary means over the seeds, per task, size and method.

    Raises:
        HeadEditError: there is no such task or method, or a number is impossible.
    """
    chosen_tasks = task_set.names if tasks is None else tasks
    chosen = list(methods()) if names is None else list(names)
    check_comparison(task_set, chosen_tasks, sizes, seeds, chosen, test_examples=test_examples, changes=changes)
    units = [
        {
            "task_set": task_set,
            "task": task,
            "size": size,
            "seed": seed,
            "name": name,
            "test_examples": test_examples,
            "changes": dict((changes or {}).get(name, {})),
        }
        for task in chosen_tasks
        for size in sizes
        for seed in seeds
        for name in chosen
    ]
    labels = [f"{unit['name']}, {unit['task']}, {unit['size']} examples, seed {unit['seed']}" for unit in units]
    rows = run_units(compare_unit, units, names=labels, jobs=jobs, progress=progress)
    summary = [
        {
            "task": task,
            "size": size,
            "method": name,
            "runs": len(found),
            "exact_match": mean(row["exact_match"] for row in found),
            "loss": mean(row["loss"] for row in found),
            "parameters": whole_mean(row["parameters"] for row in found),
            "heads": mean(row["heads"] for row in found),
            "seconds": mean(row["seconds"] for row in found),
        }
        for (task, size, name), found in grouped(rows, "task", "size", "method").items()
    ]
    return BenchResult(
        title=f"{task_set.title}: exact match on {test_examples} unseen examples",
        settings={
            "tasks": list(chosen_tasks),
            "sizes": list(sizes),
            "seeds": list(seeds),
            "methods": chosen,
            "test_examples": test_examples,
            "changes": {name: dict(fields) for name, fields in (changes or {}).items()},
        },
        rows=rows,
        summary=summary,
        tables=[
            (
                f"{size} examples, mean of {counted(seeds, 'seed')}",
                ["task", *chosen],
                _table_of_size(rows, size, chosen),
            )
            for size in sizes
        ],
    )


def compare_unit(
    task_set: TaskSet,
    task: str,
    size: int,
    seed: int,
    name: str,
    test_examples: int,
    changes: Mapping[str, Any],
) -> Row:
    """Trains and tests one method on one task.

    Returns:
        Task, size, seed, method; exact match and loss in nats per token on the test examples; parameters in effect;
        heads and gates open; seconds of the training; the learning rate of LoRA.
    """
    train, test = task_set.examples(task, size, seed, test_examples)
    tokenizer = load_tokenizer(task_set.model)
    outcome = method(name)(
        Problem(
            fresh=lambda: load_model(task_set.model, dtype="float32", device="cpu"),
            train=train,
            score=lambda model: exact_match(model, tokenizer, test, batch_size=250, progress=False).accuracy,
            tokenizer=tokenizer,
            seed=seed,
        ),
        changes,
    )
    rows = encode(test, tokenizer, max_length=None, name="test", progress=False)
    losses = example_losses(outcome.model, rows, PadRight(tokenizer.pad_token_id), 250)
    return {
        "task": task,
        "size": size,
        "seed": seed,
        "method": name,
        "exact_match": outcome.score,
        "loss": losses.mean().item(),
        "parameters": outcome.parameters,
        "heads": outcome.heads,
        "gates": outcome.gates,
        "seconds": round(outcome.seconds, 2),
        "learning_rate": outcome.details.get("learning_rate"),
    }


def _table_of_size(rows: Sequence[Row], size: int, names: Sequence[str]) -> list[list[Any]]:
    """A line per task, then the mean of all, and what the methods cost."""
    of_size = [row for row in rows if row["size"] == size]
    by_task = grouped(of_size, "task", "method")
    by_name = grouped(of_size, "method")
    lines = [
        [task, *(mean(row["exact_match"] for row in by_task[task, name]) for name in names)]
        for task in dict.fromkeys(row["task"] for row in of_size)
    ]
    lines.append(["mean of the tasks", *(mean(row["exact_match"] for row in by_name[name,]) for name in names)])
    for key, combine in (("loss", mean), ("parameters", whole_mean), ("heads", mean), ("seconds", mean)):
        lines.append([label(key), *(combine(row[key] for row in by_name[name,]) for name in names)])
    return lines
