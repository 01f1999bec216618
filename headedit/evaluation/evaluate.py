"""``headedit.evaluate``: a model on a task, with its edits and without, next to the baselines."""

import contextlib
import dataclasses
import json
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from torch import nn

from headedit.data import prompt_ids
from headedit.data.clock import Clock
from headedit.data.tokens import TokenisedPrompt, text_ids
from headedit.edits.attached import handle_of
from headedit.edits.handle import HeadEdits
from headedit.errors import HeadEditError
from headedit.evaluation.answers.answers import answers
from headedit.evaluation.answers.generation import check_room
from headedit.evaluation.answers.predictions import BASE, EDITED, Prediction, append, digest, resume
from headedit.evaluation.reports.fingerprints import DIGESTS, fingerprint
from headedit.evaluation.reports.report import Report
from headedit.evaluation.reports.report_tables import markdown
from headedit.evaluation.scores import scoring
from headedit.evaluation.tasks.examples import Example
from headedit.evaluation.tasks.records import TaskData, load_examples, load_rows, load_training_rows
from headedit.evaluation.tasks.task import Task
from headedit.evaluation.tasks.task_files import find_task
from headedit.hf.loading import load_tokenizer
from headedit.hf.models import check_has_head, expect_model
from headedit.io.files import check_writable, write_atomically


def evaluate(
    model: nn.Module,
    task: "str | PathLike[str] | Task",
    *,
    edits: HeadEdits | None = None,
    tokenizer: Any = None,
    data: TaskData | None = None,
    train: TaskData | None = None,
    limit: int | None = None,
    seed: int = 0,
    batch_size: int = 32,
    output: "str | PathLike[str] | None" = None,
    skip_broken: bool = False,
    fields: Mapping[str, str] | None = None,
    progress: bool = True,
    **changes: Any,
) -> Report:
    """Evaluates a model on a task; with edits also the base model, by switching them off.

    Args:
        model: a causal LM.
        task: the name of a task that comes with headedit, the path of a task file, or a ``Task``.
        edits: the handle of edits on the model; given, the base is measured in the same process. A chat template is
            told the date that it was told when they were trained.
        tokenizer: by default the one at the model's own name or path.
        data: records, or where they are: a file, a folder, an address or an id on the hub; by default the task's. For a
            task without a prompt, examples of every form that ``headedit.fit`` takes.
        train: the same of training records, which the majority answer is taken from.
        limit: use this many examples, drawn by the seed.
        seed: seed of that draw.
        batch_size: examples per batch; predictions do not depend on it in float32.
        output: a JSON file for the report; a Markdown file and the predictions are written next to it. A stopped
            evaluation is resumed by the same call; predictions of other weights, edits, settings or another tokenizer
            are made again.
        skip_broken: leave out and report what is broken or unreadable for the model, instead of stopping at the first.
        fields: for a task without a prompt, what the fields of a format are called in the records, as in
            ``headedit.DataConfig``.
        progress: show bars.
        changes: fields of the task to change, such as ``scoring="loglikelihood"`` or ``num_beams=1``.

    Raises:
        HeadEditError: the task or a record is faulty, the split is empty, a prompt does not fit the model's context, or
            the output holds another evaluation.
    """
    task = find_task(task, **changes)
    scoring.check_metrics(task)
    model = expect_model(model)
    check_has_head(model, "Evaluation")
    if edits is not None and (not isinstance(edits, HeadEdits) or edits.model is not model or not edits.attached):
        raise HeadEditError("edits: are not on this model; give the model that they were attached to or loaded on.")
    if (limit is not None and limit < 1) or batch_size < 1:
        raise HeadEditError("limit and batch_size: expected 1 or more.")
    file = None if output is None else Path(output)
    if file is not None:
        check_writable(file.parent)
    if tokenizer is None:
        tokenizer = load_tokenizer(getattr(model.config, "_name_or_path", ""))
    clock = Clock(_date(model, edits))
    with clock:
        examples, left_out = load_examples(
            task, load_rows(task, data, fields), tokenizer, limit=limit, seed=seed, skip_broken=skip_broken
        )
    max_new_tokens = task.max_new_tokens or _longest_answer(tokenizer, examples)
    if skip_broken:
        examples, too_long = _fitting(model, tokenizer, task, examples, max_new_tokens)
        left_out += too_long
    training_rows = load_training_rows(task, data, train)
    trained = None
    if training_rows:
        with clock:
            trained, _ = load_examples(task, training_rows, tokenizer, limit=None, seed=seed, skip_broken=True)
    settings = {
        "task": {k: v for k, v in dataclasses.asdict(task).items() if k not in ("data", "description", "suite")},
        "examples": digest(dataclasses.astuple(example) for example in examples),
        **fingerprint(model, edits, tokenizer, [example.prompt for example in examples]),
    }
    options = {"max_new_tokens": max_new_tokens, "batch_size": batch_size, "progress": progress}
    found = _predictions(model, tokenizer, task, examples, edits, file, settings, options)
    draws = {system: scoring.draws(task, examples, predictions) for system, predictions in found.items()}
    scores = {system: scoring.score(task, examples, found[system], draws[system]) for system in found}
    first, *_ = scores.values()
    report = Report(
        task=task.name,
        n=len(examples),
        metric=next(iter(first.metrics)),
        scoring=task.scoring,
        score=first,
        base=scores.get(BASE),
        constant=scoring.constant(task, examples),
        majority=scoring.constant(task, examples, trained) if trained else None,
        test=scoring.paired_test(task, examples, found, draws) if BASE in found else None,
        left_out=left_out,
        settings={**settings, "batch_size": batch_size, "limit": limit, "seed": seed},
    )
    if file is not None:
        _write_report(file, report)
    return report


def _date(model: nn.Module, edits: HeadEdits | None) -> str | None:
    """The date that a chat template was told when the active edits were trained."""
    found = (handle_of(module) for module in model.modules()) if edits is None else iter([edits])
    return next((handle.module.date for handle in found if handle is not None), None)


def _predictions(
    model: nn.Module,
    tokenizer: Any,
    task: Task,
    examples: Sequence[Example],
    edits: HeadEdits | None,
    file: Path | None,
    settings: dict[str, Any],
    options: dict[str, Any],
) -> dict[str, list[Prediction]]:
    """The predictions of each system, by its name; those in the file next to the report are not made again."""
    kept = None if file is None else file.with_suffix(".predictions.jsonl")
    done = [] if kept is None else resume(kept, settings, DIGESTS)
    found: dict[str, list[Prediction]] = {}
    for system in ["model"] if edits is None else [EDITED, BASE]:
        by_row = {prediction.row: prediction for prediction in done if prediction.system == system}
        missing = [(row, example) for row, example in enumerate(examples) if row not in by_row]
        coming = answers(model, tokenizer, task, missing, system=system, **options)
        with _system(edits, system, missing), contextlib.closing(coming):
            for batch in coming:
                if kept is not None:
                    append(kept, batch)
                by_row |= {prediction.row: prediction for prediction in batch}
        found[system] = [by_row[row] for row in range(len(examples))]
    return found


def _system(
    edits: HeadEdits | None, system: str, missing: Sequence[Any]
) -> "contextlib.AbstractContextManager[object]":
    """A context in which the model is the system of a name."""
    if edits is None or not missing:
        return contextlib.nullcontext()
    return edits.disable_adapter() if system == BASE else edits.measured()


def _longest_answer(tokenizer: Any, examples: Sequence[Example]) -> int:
    """Tokens of the longest expected answer, with the tokens that end it."""

    def ending(example: Example) -> int:
        return max(1, len(example.prompt.ending)) if isinstance(example.prompt, TokenisedPrompt) else 1

    def length(answer: str) -> int:
        return max(len(text_ids(tokenizer, before + answer)) for before in ("", " "))

    return max(length(answer) + ending(example) for example in examples for answer in example.answers)


def _fitting(
    model: nn.Module, tokenizer: Any, task: Task, examples: Sequence[Example], max_new_tokens: int
) -> tuple[list[Example], list[str]]:
    """The examples that the model can read, and a message for each that it cannot."""
    fitting, too_long = [], []
    for example in examples:
        tails = [text_ids(tokenizer, task.delimiter + label) for label in example.labels]
        more = max_new_tokens if task.scoring == "generation" else max(map(len, tails))
        try:
            check_room(model, prompt_ids(tokenizer, example.prompt), more, example.where)
            fitting.append(example)
        except HeadEditError as error:
            too_long.append(str(error))
    if not fitting:
        raise HeadEditError(f"There is nothing to evaluate: no prompt can be read, the first: {too_long[0]}")
    return fitting, too_long


def _write_report(file: Path, report: Report) -> None:
    try:
        write_atomically(file, (json.dumps(report.to_dict(), indent=2) + "\n").encode())
        write_atomically(file.with_suffix(".md"), markdown([report]).encode())
    except OSError as error:
        raise HeadEditError(f"{file}: cannot be written ({error.strerror}).") from None
