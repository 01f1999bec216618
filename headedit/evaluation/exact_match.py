"""Accuracy by exact match of the generated response, with the baselines that make it readable."""

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from headedit.edits.handle import HeadEdits
from headedit.errors import HeadEditError
from headedit.evaluation.generation import generate


@dataclass(frozen=True, kw_only=True)
class ExactMatch:
    """What was measured on one set of examples.

    Fields:
        n: number of examples.
        accuracy: share of exact matches, 0 to 1.
        base_accuracy: the same with the edits switched off; None where the model has none.
        constant_answer: the most frequent response of the set.
        constant_accuracy: what answering that every time would score.
        seconds: wall-clock time.
    """

    n: int
    accuracy: float
    base_accuracy: float | None
    constant_answer: str
    constant_accuracy: float
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain data."""
        return asdict(self)


def first_line(text: str) -> str:
    """The first line of a response without surrounding white space: what is compared."""
    lines = text.strip().splitlines()
    return lines[0].strip() if lines else ""


def exact_match(
    model: nn.Module,
    tokenizer: Any,
    pairs: Sequence[tuple[str, str]],
    *,
    edits: HeadEdits | None = None,
    max_new_tokens: int | None = None,
    batch_size: int = 32,
    progress: bool = True,
) -> ExactMatch:
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
    if not pairs:
        raise HeadEditError("There is nothing to evaluate: the set of examples is empty.")
    started = time.perf_counter()
    expected = [first_line(response) for _, response in pairs]
    if max_new_tokens is None:
        lengths = (len(tokenizer(r, add_special_tokens=False)["input_ids"]) for _, r in pairs)
        max_new_tokens = max(lengths) + 1
    prompts = [prompt for prompt, _ in pairs]

    def measure() -> float:
        texts = generate(
            model,
            tokenizer,
            prompts,
            max_new_tokens=max_new_tokens,
            batch_size=batch_size,
            progress=progress,
        )
        hits = sum(first_line(text) == answer for text, answer in zip(texts, expected, strict=True))
        return hits / len(pairs)

    accuracy = measure()
    base_accuracy = None
    if edits is not None:
        with edits.disable_adapter():
            base_accuracy = measure()
    constant, count = Counter(expected).most_common(1)[0]
    return ExactMatch(
        n=len(pairs),
        accuracy=accuracy,
        base_accuracy=base_accuracy,
        constant_answer=constant,
        constant_accuracy=count / len(pairs),
        seconds=time.perf_counter() - started,
    )
