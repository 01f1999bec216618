"""Exact match of the generated response with the expected one: the task of a plain list of pairs."""

from collections.abc import Sequence
from typing import Any

from torch import nn

from headedit.edits.handle import HeadEdits
from headedit.evaluation.evaluate import evaluate
from headedit.evaluation.reports.report import Report
from headedit.evaluation.tasks.task import Task

EXACT_MATCH = Task(
    name="exact match",
    prompt="{{ prompt }}",
    answer="response",
    template="plain",
    num_beams=1,
    max_new_tokens=None,
    description="greedy responses compared with the expected ones, first line against first line",
)


def exact_match(
    model: nn.Module,
    tokenizer: Any,
    pairs: Sequence[tuple[str, str]],
    *,
    edits: HeadEdits | None = None,
    max_new_tokens: int | None = None,
    batch_size: int = 32,
    progress: bool = True,
) -> Report:
    """Greedy responses compared with the expected ones, first line against first line.

    Args:
        model: a causal LM.
        tokenizer: its tokenizer.
        pairs: (prompt, expected response).
        edits: the handle of edits on the model; given, the base is measured too.
        max_new_tokens: longest response; by default the longest expected one and the end-of-text.
        batch_size: prompts a batch.
        progress: show bars.

    Raises:
        HeadEditError: ``pairs`` is empty, or a prompt does not fit the context.
    """
    return evaluate(
        model,
        EXACT_MATCH,
        data=pairs,
        edits=edits,
        tokenizer=tokenizer,
        batch_size=batch_size,
        progress=progress,
        max_new_tokens=max_new_tokens,
    )
