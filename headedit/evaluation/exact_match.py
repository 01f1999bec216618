"""Exact match of the generated response with the expected one: the task of any set of training examples."""

from collections.abc import Iterable
from typing import Any

from torch import nn

from headedit.edits.handle import HeadEdits
from headedit.evaluation.evaluate import evaluate
from headedit.evaluation.reports.report import Report
from headedit.evaluation.tasks.task import Task

EXACT_MATCH = Task(
    name="exact match",
    prompt=None,
    answer=None,
    template=None,
    num_beams=1,
    max_new_tokens=None,
    description="greedy responses compared with the expected ones, first line with first line",
)


def exact_match(
    model: nn.Module,
    tokenizer: Any,
    examples: Iterable[Any],
    *,
    edits: HeadEdits | None = None,
    max_new_tokens: int | None = None,
    batch_size: int = 32,
    progress: bool = True,
    all_processes: bool = True,
) -> Report:
    """Compares greedy responses with the expected ones, first line with first line.

    Args:
        model: a causal LM.
        tokenizer: its tokenizer.
        examples: what ``headedit.fit`` trains on: (prompt, response) pairs, records of any form that
            ``headedit.data.formats`` names, conversations too, or records of ``input_ids`` and ``labels``; a list, a
            ``datasets.Dataset``, or a split of ``headedit.load_data``. The last response of each is expected, and all
            before it is the prompt.
        edits: the handle of edits on the model; if given, the base is measured too.
        max_new_tokens: longest response; by default the longest expected one and what ends it.
        batch_size: prompts per batch.
        progress: show bars.
        all_processes: share the prompts out, as ``headedit.evaluate`` does.

    Raises:
        HeadEditError: there are no examples, one is of another form, or a prompt does not fit the context.
    """
    return evaluate(
        model,
        EXACT_MATCH,
        data=examples,
        edits=edits,
        tokenizer=tokenizer,
        batch_size=batch_size,
        progress=progress,
        all_processes=all_processes,
        max_new_tokens=max_new_tokens,
    )
