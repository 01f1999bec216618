"""Every recipe and LoRA on the embedded model: what each makes of a few examples of a task that no prompt names."""

from collections.abc import Mapping, Sequence
from typing import Any

from headedit.bench.parallel import Row, run_units
from headedit.bench.recovery.methods import Problem, contender, contenders
from headedit.bench.recovery.planted_runs import Changes, check_changes
from headedit.bench.results import BenchResult, counted, grouped, mean, whole_mean
from headedit.data import to_pair
from headedit.data.batches import PadRight
from headedit.data.encoding import encode
from headedit.data.losses import example_losses
from headedit.demo import MODEL_FOLDER, tasks
from headedit.errors import HeadEditError, suggest
from headedit.evaluation import exact_match
from headedit.hf.loading import load_model, load_tokenizer

SIZES = (8, 24, 64, 200)
TEST = 500
LARGEST = 1000
"""The most training examples: the test examples are unlike the first so many, and so are the same for any number."""

_TEST_SEED = 1_000_003  # apart from the seeds that people give


def examples_of(
    task: str, size: int, seed: int, test_examples: int = TEST
) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Training and test pairs of an uncued task; no prompt is in both, and the test is the same for every size.

    Args:
        task: one of ``headedit.demo.tasks``.
        size: number of training pairs, up to ``LARGEST``; fewer are the first of more.
        seed: of both.
        test_examples: number of test pairs.

    Raises:
        HeadEditError: there is no such task, or a number is impossible.
    """
    if task not in tasks.TASKS:
        raise HeadEditError(f"There is no task '{task}'.{suggest(task, tasks.TASKS)} Tasks: {', '.join(tasks.TASKS)}.")
    if not 1 <= size <= LARGEST:
        raise HeadEditError(f"sizes: found {size}, expected 1 to {LARGEST} examples.")
    if test_examples < 1:
        raise HeadEditError(f"test_examples: found {test_examples}, expected 1 or more.")
    pool = tasks.records(task, LARGEST, cued=False, seed=seed)
    seen = frozenset(row["prompt"] for row in pool)
    unseen = tasks.records(task, test_examples, cued=False, seed=_TEST_SEED + seed, exclude=seen)
    train, test = ([to_pair(row, f"{task} example") for row in rows] for rows in (pool[:size], unseen))
    return train, test


def compare_unit(task: str, size: int, seed: int, name: str, test_examples: int, changes: Mapping[str, Any]) -> Row:
    """One contender on one task.

    Args:
        task: the task, which no prompt names.
        size: number of training examples; none of them is given as a validation set.
        seed: of the examples and the training.
        name: the contender's.
        test_examples: number of unseen examples.
        changes: of the contender's settings.

    Returns:
        Task, size, seed, contender; exact match and loss in nats a token on the test examples; parameters that act;
        heads and gates open; seconds of the training; the learning rate of LoRA.
    """
    train, test = examples_of(task, size, seed, test_examples)
    tokenizer = load_tokenizer(str(MODEL_FOLDER))
    outcome = contender(name)(
        Problem(
            fresh=lambda: load_model(str(MODEL_FOLDER), dtype="float32", device="cpu"),
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
        "contender": name,
        "exact_match": outcome.score,
        "loss": losses.mean().item(),
        "parameters": outcome.parameters,
        "heads": outcome.heads,
        "gates": outcome.gates,
        "seconds": round(outcome.seconds, 2),
        "learning_rate": outcome.details.get("learning_rate"),
    }


def compare(
    names_of_tasks: Sequence[str] = tuple(tasks.TASKS),
    sizes: Sequence[int] = SIZES,
    seeds: Sequence[int] = range(3),
    names: Sequence[str] | None = None,
    *,
    test_examples: int = TEST,
    changes: Changes | None = None,
    jobs: int = 1,
    progress: bool = True,
) -> BenchResult:
    """Teaches the embedded model uncued tasks by every contender, from few examples to many.

    LoRA has the best of three learning rates by the test score, which flatters it; the others have their defaults.

    Args:
        names_of_tasks: some of ``headedit.demo.tasks``.
        sizes: numbers of training examples.
        seeds: of examples and training.
        names: contenders; by default all, and the unedited model.
        test_examples: number of unseen examples.
        changes: of the contenders' settings.
        jobs: number of processes.
        progress: show a bar.

    Returns:
        A row a run; in the summary means over the seeds, of every task, size and contender.

    Raises:
        HeadEditError: there is no such task or contender, or a number is impossible.
    """
    chosen = list(contenders()) if names is None else list(names)
    check_changes(chosen, changes, planted=False)
    for task in names_of_tasks:
        for size in sizes:
            examples_of(task, size, 0, test_examples)
    units = [
        {
            "task": task,
            "size": size,
            "seed": seed,
            "name": name,
            "test_examples": test_examples,
            "changes": dict((changes or {}).get(name, {})),
        }
        for task in names_of_tasks
        for size in sizes
        for seed in seeds
        for name in chosen
    ]
    if not units:
        raise HeadEditError("There is nothing to run: give at least one task, size, seed and contender.")
    labels = [f"{unit['name']}, {unit['task']}, {unit['size']} examples, seed {unit['seed']}" for unit in units]
    rows = run_units(compare_unit, units, names=labels, jobs=jobs, progress=progress)
    summary = [
        {
            "task": task,
            "size": size,
            "contender": name,
            "runs": len(found),
            "exact_match": mean(row["exact_match"] for row in found),
            "loss": mean(row["loss"] for row in found),
            "parameters": whole_mean(row["parameters"] for row in found),
            "heads": mean(row["heads"] for row in found),
            "seconds": mean(row["seconds"] for row in found),
        }
        for (task, size, name), found in grouped(rows, "task", "size", "contender").items()
    ]
    return BenchResult(
        title=f"The embedded model: exact match on {test_examples} unseen examples",
        settings={
            "tasks": list(names_of_tasks),
            "sizes": list(sizes),
            "seeds": list(seeds),
            "contenders": chosen,
            "test_examples": test_examples,
            "changes": {name: dict(fields) for name, fields in (changes or {}).items()},
        },
        rows=rows,
        summary=summary,
        tables=[
            (f"{size} examples, mean of {counted(seeds, 'seed')}", ["task", *chosen], _block(rows, size, chosen))
            for size in sizes
        ],
    )


def _block(rows: Sequence[Row], size: int, names: Sequence[str]) -> list[list[Any]]:
    """A line a task, then the mean of all, and what the contenders cost."""
    there = [row for row in rows if row["size"] == size]
    by_task = grouped(there, "task", "contender")
    by_name = grouped(there, "contender")
    lines = [
        [task, *(mean(row["exact_match"] for row in by_task[task, name]) for name in names)]
        for task in dict.fromkeys(row["task"] for row in there)
    ]
    return [
        *lines,
        ["mean of the tasks", *(mean(row["exact_match"] for row in by_name[name,]) for name in names)],
        ["loss, nats a token", *(mean(row["loss"] for row in by_name[name,]) for name in names)],
        ["parameters", *(whole_mean(row["parameters"] for row in by_name[name,]) for name in names)],
        ["heads", *(mean(row["heads"] for row in by_name[name,]) for name in names)],
        ["seconds", *(mean(row["seconds"] for row in by_name[name,]) for name in names)],
    ]
