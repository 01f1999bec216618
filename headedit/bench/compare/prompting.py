"""Few-shot prompting: worked examples in front of every question, which is what people try first."""

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

from torch import nn

from headedit.data.tokens import text_ids
from headedit.errors import HeadEditError
from headedit.evaluation.tasks.task import Task
from headedit.hf.config import context_length


def with_shots(
    task: Task, shots: Sequence[tuple[str, str]], model: nn.Module, tokenizer: Any, room: int
) -> tuple[Task, int]:
    """The task with as many examples in front of its prompt as the model's context takes.

    Args:
        task: a task with a prompt and the template ``plain``.
        shots: (prompt, response) pairs, the first ones are kept.
        model: the model, whose context is the limit.
        tokenizer: counts tokens.
        room: tokens to leave for a question and its answer.

    Returns:
        The task, and how many examples it has in its prompt.

    Raises:
        HeadEditError: the task puts its prompt into a template, or no example fits.
    """
    if task.prompt is None or task.template != "plain":
        raise HeadEditError(
            f"The task '{task.name}' needs a prompt and the template 'plain' for examples in the prompt."
        )
    limit = context_length(model)
    kept = list(shots)
    while kept and limit is not None and len(text_ids(tokenizer, _joined(kept))) + room > limit:
        kept.pop()
    if not kept:
        raise HeadEditError(f"{task.name}: no example fits in front of a question, in a context of {limit} tokens.")
    literal = json.dumps(_joined(kept), ensure_ascii=False)
    return dataclasses.replace(task, prompt="{{ " + literal + " }}" + task.prompt), len(kept)


def _joined(shots: Sequence[tuple[str, str]]) -> str:
    return "".join(f"{prompt}{response}\n\n" for prompt, response in shots)
