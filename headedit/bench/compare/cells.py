"""Cells of a comparison: one method on one task, from so many examples, with one seed; each in a folder of its own."""

import dataclasses
import functools
import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from headedit.bench.compare.config import CompareConfig, ComparedTask
from headedit.bench.compare.learning import Learned, Lesson, check_method, learn
from headedit.bench.cost.memory import peak_of_process
from headedit.bench.results import Row
from headedit.errors import HeadEditError
from headedit.evaluation import evaluate
from headedit.evaluation.answers.predictions import Prediction, digest, read_predictions
from headedit.evaluation.scores.scoring import MEANS_OVER_ROWS, compute_metrics, right_share
from headedit.evaluation.tasks.examples import Example
from headedit.evaluation.tasks.records import load_examples, load_rows
from headedit.evaluation.tasks.task import ACCURACY, MC2, Source, Task
from headedit.evaluation.tasks.task_files import find_task
from headedit.evaluation.tasks.templates import render
from headedit.hf.config import context_length
from headedit.io.files import write_atomically
from headedit.io.json import parse_json

CELL_FILE = "cell.json"


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One cell.

    Fields:
        config: the comparison.
        task: name of the task in it.
        size: number of training examples.
        seed: the seed.
        method: name of the method.
    """

    config: CompareConfig
    task: str
    size: int
    seed: int
    method: str

    @property
    def folder(self) -> Path:
        """The folder of the cell."""
        parts = (self.task, f"{self.size} examples", f"seed {self.seed}", self.method)
        return Path(self.config.output).joinpath(*(re.sub(r"[^\w.=+-]+", "-", part) for part in parts))

    @property
    def name(self) -> str:
        """What messages call it."""
        return f"{self.task}, {self.size} examples, seed {self.seed}, {self.method}"

    @property
    def key(self) -> str:
        """A digest of everything that the result depends on."""
        config = dataclasses.asdict(self.config)
        shared = {k: v for k, v in config.items() if k not in ("tasks", "output", "methods", "sizes", "seeds")}
        task = dataclasses.asdict(task_of(self.config.tasks[self.task], self.task))
        return digest([shared, task, self.size, self.seed, self.method, self.settings])

    @property
    def settings(self) -> Mapping[str, Any]:
        """The method's own settings."""
        return self.config.settings.get(self.method, {})

    def row(self) -> Row | None:
        """The result, where the cell is finished; None where it is not, or where the method could not be used then.

        Raises:
            HeadEditError: the folder holds the result of another comparison.
        """
        file = self.folder / CELL_FILE
        if not file.is_file():
            return None
        found = parse_json(file.read_text(encoding="utf-8"), str(file))
        if not isinstance(found, dict) or found.get("key") != self.key:
            raise HeadEditError(
                f"{self.folder}: holds a cell of another comparison: other settings, task or model. Choose another "
                "output, or remove this folder."
            )
        row: Row = found["row"]
        return None if "error" in row else row


def plan_cells(config: CompareConfig, names: Iterable[str]) -> list[Cell]:
    """The cells of a comparison, all checked, in the order of tasks, sizes, seeds and methods.

    Raises:
        HeadEditError: a task or method does not exist, or its settings are impossible.
    """
    for name in names:
        check_method(name, config.settings.get(name, {}))
    for name, compared in config.tasks.items():
        task_of(compared, name)
    return [
        Cell(config=config, task=task, size=size, seed=seed, method=method)
        for task in config.tasks
        for size in config.sizes
        for seed in config.seeds
        for method in names
    ]


def task_of(compared: ComparedTask, name: str, split: str | None = None) -> Task:
    """The task under a name, with the place of one of its splits, by default that of the test.

    Raises:
        HeadEditError: there is no such task, it has no prompt of its own, or it does not say where its records are.
    """
    task = find_task(compared.task or name, **compared.changes)
    if task.prompt is None:
        raise HeadEditError(f"tasks: {name}: has no prompt; a comparison needs a task with a prompt of its own.")
    if task.data is None and compared.data is None:
        raise HeadEditError(f"tasks: {name}: does not say where its records are; give data.")
    source = Source(path=compared.data) if compared.data is not None else task.data
    assert source is not None
    return dataclasses.replace(task, data=dataclasses.replace(source, split=split or compared.test, train=None))


def examples_of(cell: Cell, tokenizer: Any) -> list[tuple[str, str]]:
    """The training examples of a cell as (prompt, response) pairs, the same for every method.

    Raises:
        HeadEditError: there are fewer than its size.
    """
    compared = cell.config.tasks[cell.task]
    task = task_of(compared, cell.task, compared.train)
    found, _ = load_examples(task, load_rows(task, None), tokenizer, limit=cell.size, seed=cell.seed, skip_broken=False)
    if len(found) < cell.size:
        raise HeadEditError(f"tasks: {cell.task}: has {len(found)} training records, fewer than {cell.size}.")
    return [
        (example.prompt, task.delimiter + render(task.response, {"answer": example.answers[0]}, example.where))
        for example in found
    ]


def run_cell(cell: Cell, base: Callable[[], nn.Module], tokenizer: Any, say: Callable[[str], None]) -> Row:
    """Trains and tests a method, and writes the result into the cell's folder; what was begun there is begun again.

    Args:
        cell: the cell.
        base: loads the base model.
        tokenizer: the model's.
        say: called with a line about what is done.

    Returns:
        Task, size, seed, method; score with its interval, values of each example (None for a metric of the whole set);
        parameters, heads, seconds, peak of memory, bytes on disk. With ``error`` and without figures where the method
        cannot be used.
    """
    config = cell.config
    lesson = Lesson(
        fresh=base,
        tokenizer=tokenizer,
        task=task_of(config.tasks[cell.task], cell.task),
        examples=examples_of(cell, tokenizer),
        seed=cell.seed,
        epochs=config.epochs,
        batch_size=config.batch_size,
        validation=config.validation,
        max_length=context_length(config.model.load_config()) if config.max_length is None else config.max_length,
        folder=cell.folder / "learned",
    )
    row: Row = {"task": cell.task, "size": cell.size, "seed": cell.seed, "method": cell.method}
    try:
        work = functools.partial(learn, cell.method, lesson, cell.settings, say)
        learned, peak = _measured(work, on_cpu=(config.model.device or "").startswith("cpu"))
        row |= _figures(learned, peak) | _scores(cell, learned, tokenizer)
    except HeadEditError as error:
        row["error"] = str(error)
    cell.folder.mkdir(parents=True, exist_ok=True)
    write_atomically(cell.folder / CELL_FILE, (json.dumps({"key": cell.key, "row": row}) + "\n").encode())
    return row


def _measured(work: Callable[[], Learned], *, on_cpu: bool) -> tuple[Learned, int | None]:
    """What was learned, and the peak of memory: of the GPU where there is one, else of the process."""
    found: list[Learned] = []
    if torch.cuda.is_available() and not on_cpu:
        torch.cuda.reset_peak_memory_stats()
        found.append(work())
        return found[0], int(torch.cuda.max_memory_allocated())
    peak = peak_of_process(lambda: found.append(work()))
    return (found or [work()])[0], peak


def _figures(learned: Learned, peak: int | None) -> Row:
    heads = None
    if learned.found is not None:
        heads = sorted({head for chosen in learned.found.values() for head in chosen})
    return {
        "parameters": learned.parameters,
        "heads": learned.heads,
        "found": heads,
        "total_heads": learned.total_heads,
        "seconds": round(learned.seconds, 2),
        "peak_bytes": peak,
        "disk_bytes": learned.disk_bytes,
        "learning_rate": learned.learning_rate,
        "tried": learned.tried,
        "notes": learned.notes,
    }


def _scores(cell: Cell, learned: Learned, tokenizer: Any) -> Row:
    report = evaluate(
        learned.model,
        learned.task,
        tokenizer=tokenizer,
        limit=cell.config.test_examples,
        batch_size=cell.config.eval_batch_size,
        output=cell.folder / "report.json",
        progress=False,
    )
    low, high = report.score.interval
    return {
        "metric": report.metric,
        "score": report.score.value,
        "low": low,
        "high": high,
        "test_examples": report.n,
        "eval_seconds": round(report.score.seconds, 2),
        "values": _values(cell, learned.task, tokenizer),
    }


def _values(cell: Cell, task: Task, tokenizer: Any) -> list[float] | None:
    """The headline of each test example alone; for accuracy 1 for a right answer and 0 for a wrong one.

    None for a metric of the whole set, such as BLEU or CIDEr, which is not the mean of what its examples have alone.
    """
    if next(iter(task.metrics)) not in (ACCURACY, MC2, *MEANS_OVER_ROWS):
        return None
    read = read_predictions(cell.folder / "report.predictions.jsonl")
    found = {prediction.row: prediction for prediction in read}
    if MC2 in task.metrics:
        limit = cell.config.test_examples
        examples, _ = load_examples(task, load_rows(task, None), tokenizer, limit=limit, seed=0, skip_broken=False)
        return [right_share(example, found[row].scores or []) for row, example in enumerate(examples)]
    return [_headline(task, found[row]) for row in sorted(found)]


def _headline(task: Task, found: Prediction) -> float:
    example = Example(found.where, "", tuple(found.answers))
    return next(iter(compute_metrics(task, [example], [found.prediction], headline=True).values()))
