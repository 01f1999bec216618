"""The answers of one system to a task's examples: by generation and extraction, or by likelihood."""

import time
from collections.abc import Generator, Iterator, Sequence
from typing import Any

import torch
from torch import nn

from headedit.errors import HeadEditError
from headedit.evaluation.answers.extraction import extract_option, first_line
from headedit.evaluation.answers.generation import Continuation, continuations
from headedit.evaluation.answers.likelihood import Scores, option_scores
from headedit.evaluation.answers.predictions import Prediction
from headedit.evaluation.tasks.examples import Example
from headedit.evaluation.tasks.task import Task


def answers(
    model: nn.Module,
    tokenizer: Any,
    task: Task,
    examples: Sequence[tuple[int, Example]],
    *,
    system: str,
    max_new_tokens: int,
    batch_size: int,
    progress: bool,
    share: tuple[int, int] = (0, 1),
) -> Generator[list[Prediction], None, None]:
    """Yields predictions batch by batch; none if there are no examples.

    Args:
        model: the model.
        tokenizer: its tokenizer.
        task: says how answers are found.
        examples: indices and examples.
        system: name of the model in the predictions.
        max_new_tokens: longest answer, in tokens.
        batch_size: examples per batch.
        progress: show a bar.
        share: (k, n) for batches k, k + n, … alone.

    Raises:
        HeadEditError: an example does not fit the model's context, or a batch does not fit the memory.
    """
    if not examples:
        return
    common: dict[str, Any] = {
        "batch_size": batch_size,
        "names": [example.where for _, example in examples],
        "share": share,
        "progress": progress,
        "describe": f"{task.name}, {system}",
    }
    found: Iterator[Any]
    if task.scoring == "generation":
        prompts = [example.prompt for _, example in examples]
        found = continuations(
            model,
            tokenizer,
            prompts,
            max_new_tokens=max_new_tokens,
            num_beams=task.num_beams,
            first_line=True,
            **common,
        )
    else:
        questions = [(e.prompt, [task.delimiter + label for label in e.labels]) for _, e in examples]
        found = option_scores(model, tokenizer, questions, normalise=task.normalise, **common)
    started = time.perf_counter()
    for batch in _within_memory(found, batch_size):
        seconds = (time.perf_counter() - started) / len(batch)
        yield [_prediction(examples[i], outcome, system, seconds) for i, outcome in batch]
        started = time.perf_counter()


def _prediction(
    example_row: tuple[int, Example], outcome: Continuation | Scores, system: str, seconds: float
) -> Prediction:
    row, example = example_row
    if isinstance(outcome, Scores):
        text, scores = "", outcome.values
        chosen: str | None = example.labels[outcome.best]
    else:
        text, scores = outcome.text, None
        chosen = extract_option(text, example.labels, example.options) if example.labels else first_line(text) or None
    return Prediction(
        system=system,
        row=row,
        where=example.where,
        text=text,
        prediction=chosen,
        answers=list(example.answers),
        scores=scores,
        tokens=outcome.tokens,
        seconds=seconds,
    )


def _within_memory(batches: Iterator[Any], batch_size: int) -> Iterator[Any]:
    try:
        yield from batches
    except torch.OutOfMemoryError:
        raise HeadEditError(
            f"A batch of {batch_size} does not fit the memory of the device. Lower batch_size, say to "
            f"{max(1, batch_size // 2)}; what was predicted so far is kept where an output is given."
        ) from None
