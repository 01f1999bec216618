"""``headedit.evaluate``: a model on a task, with its edits and without, next to the baselines."""

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
from headedit.edits.values import whole_number
from headedit.errors import HeadEditError
from headedit.evaluation.answers.generation import check_room
from headedit.evaluation.answers.predictions import BASE, Prediction, digest
from headedit.evaluation.answers.systems import predictions, settings_of_all
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
from headedit.hf.names import portable_name
from headedit.hf.tokenizers import as_tokenizer
from headedit.io.describe import describe
from headedit.io.files import check_writable, write_atomically
from headedit.io.launch import shared


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
    all_processes: bool = True,
    **changes: Any,
) -> Report:
    """Evaluates a model on a task; with edits also the base model, by switching them off.

    Several processes, as torchrun or accelerate start them, share the examples out, batch by batch, and all return the
    report that one process would; the first alone writes files and shows bars. A model that is itself spread over the
    processes is run by all of them on every example.

    >>> from headedit.demo import MODEL_FOLDER, tasks  # a tiny model that comes with headedit, and its tasks
    >>> model = headedit.load_model(str(MODEL_FOLDER), device="cpu")
    >>> edits = headedit.attach(model)
    >>> task = headedit.Task(name="reverse", prompt="{{ prompt }}", answer="response", template="plain")
    >>> rows = tasks.records("reverse", 20, cued=True, seed=0)
    >>> report = headedit.evaluate(model, task, edits=edits, data=rows, progress=False)
    >>> report
    Report(reverse: accuracy 100.0 [83.9, 100.0], base 100.0, constant answer 5.0; n = 20)
    >>> report.n, report.accuracy == report.base_accuracy  # fresh edits change nothing
    (20, True)

    Args:
        model: a causal LM.
        task: the name of a task that comes with headedit, the path of a task file, or a ``Task``.
        edits: the handle of edits on the model; given, the base is measured in the same process. A chat template is
            told the date that it was told when they were trained.
        tokenizer: the model's tokenizer, its name or its folder; by default the one at the model's own name or path.
        data: records, or where they are: a file, a folder, an address or an id on the hub; by default the task's. For a
            task without a prompt, examples of every form that ``headedit.fit`` takes.
        train: the same of training records, which the majority answer is taken from.
        limit: use at most this many examples, drawn by the seed.
        seed: seed of that draw.
        batch_size: examples per batch; predictions do not depend on it in float32.
        output: a JSON file for the report; a Markdown file and the predictions are written next to it. A stopped
            evaluation is resumed by the same call; predictions of other weights, edits, settings or another tokenizer
            are made again.
        skip_broken: leave out and report what is broken or unreadable for the model, instead of stopping at the first.
        fields: for a task without a prompt, what the fields of a format are called in the records, as in
            ``headedit.DataConfig``.
        progress: show bars.
        all_processes: False to evaluate in this process alone, where the others do not call it.
        changes: fields of the task to change, such as ``scoring="loglikelihood"`` or ``num_beams=1``.

    Raises:
        HeadEditError: an argument is of a wrong type, the task or a record is faulty, the edits are not on the model,
            the split is empty, a prompt does not fit the model's context, the log-likelihood of an option is NaN, the
            output holds another evaluation, or another process has failed or evaluates something else.
    """
    with shared(all_processes) as processes:
        task = find_task(task, **changes)
        scoring.check_metrics(task)
        model = expect_model(model)
        check_has_head(model, "Evaluation")
        if edits is not None and (not isinstance(edits, HeadEdits) or edits.model is not model or not edits.attached):
            raise HeadEditError("edits: are not on this model; give the model that they were attached to or loaded on.")
        for name, value in (("limit", 1 if limit is None else limit), ("batch_size", batch_size)):
            if whole_number(value, name) < 1:
                raise HeadEditError(f"{name}: found {value}, expected 1 or more.")
        seed = whole_number(seed, "seed")
        if not isinstance(output, str | PathLike | None):
            raise HeadEditError(f"output: found {describe(output)}, expected a JSON file, such as 'report.json'.")
        file = None if output is None else Path(output)
        if file is not None and processes.first:
            check_writable(file.parent)
        tokenizer = as_tokenizer(tokenizer)
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
            "task": task_settings(task),
            "examples": digest(dataclasses.astuple(example) for example in examples),
            **fingerprint(model, edits, tokenizer, [example.prompt for example in examples]),
        }
        settings = settings_of_all(processes, model, settings, DIGESTS)
        found = predictions(
            processes,
            model,
            tokenizer,
            task,
            examples,
            edits,
            file=None if file is None else file.with_suffix(".predictions.jsonl"),
            settings=settings,
            digests=DIGESTS,
            max_new_tokens=max_new_tokens,
            batch_size=batch_size,
            progress=progress,
        )
        place = portable_name(str(data)) if isinstance(data, str | PathLike) else None
        settings = {**settings, "batch_size": batch_size, "limit": limit, "seed": seed, "data": place}

        def reported() -> Report:
            report = _report(task, examples, found, trained, left_out, settings)
            if file is not None:
                _write_report(file, report)
            return report

        return processes.from_first(reported)


def task_settings(task: Task) -> dict[str, Any]:
    """The fields of a task that its figures depend on, as a report has them."""
    return {k: v for k, v in dataclasses.asdict(task).items() if k not in ("data", "description", "suite")}


def _report(
    task: Task,
    examples: Sequence[Example],
    found: Mapping[str, Sequence[Prediction]],
    trained: Sequence[Example] | None,
    left_out: list[str],
    settings: dict[str, Any],
) -> Report:
    draws = {system: scoring.draws(task, examples, of_system) for system, of_system in found.items()}
    scores = {system: scoring.score(task, examples, found[system], draws[system]) for system in found}
    first, *_ = scores.values()
    return Report(
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
        settings=settings,
    )


def _date(model: nn.Module, edits: HeadEdits | None) -> str | None:
    """The date that a chat template was told when the active edits were trained."""
    found = (handle_of(module) for module in model.modules()) if edits is None else iter([edits])
    return next((handle.module.date for handle in found if handle is not None), None)


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
