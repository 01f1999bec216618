"""Log-likelihood of each option as the continuation of its prompt, batched; shared beginnings are run once.

The log-likelihood of an option of tokens o_1 … o_m needs the model on prompt + o_1 … o_(m-1). Options whose inputs
are prefixes of each other are read from the same row: letters, or ``answer1`` to ``answer5``, cost one forward pass per
prompt. Other options follow their prompt in one row, as a tree of tokens; where the model does not read such a row
rightly, they continue the cache of their prompt, and where that cannot be shared, each is run with its whole prompt.
Rows of whole inputs are padded on the right, where causal attention never looks, so every architecture sees the same
positions.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from headedit.data.batches import IGNORED
from headedit.data.rows import Vocabulary
from headedit.data.tokens import continuation_ids
from headedit.errors import HeadEditError
from headedit.evaluation.answers.common_prefix import CommonPrefix
from headedit.evaluation.answers.generation import by_length, check_room, padding
from headedit.evaluation.answers.option_trees import OptionTrees
from headedit.evaluation.answers.padding import batches_of, report_equal_lengths, takes_padding
from headedit.evaluation.answers.rows import Row, RowReader
from headedit.evaluation.answers.shared_prompts import Question, SharedPrompts, passes
from headedit.hf.modes import evaluating

Normalise = Literal["none", "tokens", "bytes"]


@dataclass(frozen=True)
class Scores:
    """The scores of the options of one example.

    Fields:
        values: log-likelihood of each, in nats, perhaps divided by its length.
        tokens: number of option tokens that were scored.
    """

    values: list[float]
    tokens: int

    @property
    def best(self) -> int:
        """Index of the most likely option, the first of several."""
        return max(range(len(self.values)), key=lambda i: self.values[i])


@torch.no_grad()
def option_scores(
    model: nn.Module,
    tokenizer: Any,
    questions: Sequence[tuple[str, Sequence[str]]],
    *,
    normalise: Normalise = "none",
    batch_size: int = 32,
    names: Sequence[str] | None = None,
    share: tuple[int, int] = (0, 1),
    progress: bool = True,
    describe: str = "scoring",
) -> Iterator[list[tuple[int, Scores]]]:
    """Computes log-likelihoods of the options of every question, batch by batch, the longest first.

    Args:
        model: a causal LM, edited or not.
        tokenizer: its tokenizer.
        questions: (prompt, options), the options as they follow the prompt.
        normalise: divide by the option's number of tokens, or of its bytes in UTF-8.
        batch_size: questions per batch of the longest; shorter ones make larger batches of as many tokens.
        names: what messages call each question; by default its number.
        share: (k, n) for batches k, k + n, … alone.
        progress: show a bar.
        describe: what the bar says.

    Yields:
        For every batch the (index of the question, scores of its options).

    Raises:
        HeadEditError: ``questions`` is empty, an option is, a question does not fit the model's context or has a token
            id that the model does not have, or the log-likelihood of an option is NaN.
    """
    if not questions:
        raise HeadEditError("There is nothing to score: the list of questions is empty.")
    names = [f"Question {i + 1}" for i in range(len(questions))] if names is None else names
    planned: list[Question] = []
    vocabulary = Vocabulary.of(model)
    encoded = continuation_ids(tokenizer, questions)
    for (head, tails), (_, options), name in zip(encoded, questions, names, strict=True):
        for tail, option in zip(tails, options, strict=True):
            if not tail:
                raise HeadEditError(f"{name}: the option {option!r} has no tokens, so it has no likelihood.")
        check_room(model, head, max(map(len, tails)), name)
        for tail in tails:
            vocabulary.check({"input_ids": head + tail, "labels": [IGNORED] * len(head) + tail}, name)
        planned.append((head, tails))
    lengths = [len(head) + max(map(len, tails)) - 1 for head, tails in planned]
    reader, tokens = RowReader(model, padding(tokenizer, model)), batch_size * max(lengths)
    prefix = CommonPrefix(reader, [head for head, _ in planned])
    ways: list[OptionTrees | SharedPrompts] = [
        *([OptionTrees(reader, prefix.continued, tokens)] if prefix.tokens else []),
        OptionTrees(reader, lambda rows: reader.read(rows, use_cache=False)[0], tokens),
        SharedPrompts(reader, batch_size, tokens),
    ]
    if not takes_padding(model, "right"):
        _report_passes(reader, planned, batch_size)
    with evaluating(model):
        for batch in by_length(lengths, batch_size, progress, describe, share):
            several = [i for i in batch if len(passes(planned[i][1])) > 1]
            asked = [planned[i] for i in several]
            tried = (way.scores(asked) for way in ways) if several else iter(())
            values = next((values for values in tried if values is not None), [])
            found = dict(zip(several, values, strict=False))
            rest = [i for i in batch if i not in found]
            found |= zip(rest, _separate(reader, prefix, [planned[i] for i in rest], batch_size, tokens), strict=True)
            for i in batch:
                if any(map(math.isnan, found[i])):
                    raise HeadEditError(
                        f"{names[i]}: the log-likelihood of an option is NaN, so none is the most likely. The model "
                        "overflows in its dtype, or its weights or edits are not finite; try dtype='bfloat16' or "
                        "'float32'."
                    )
            yield [(i, _scores(questions[i][1], planned[i][1], found[i], normalise)) for i in batch]


def _report_passes(reader: RowReader, questions: Sequence[Question], batch_size: int) -> None:
    """Warns how many passes it takes that inputs of equal length alone share one, where that is more."""
    widths = [len(head) + len(inner) for head, tails in questions for inner, _ in passes(tails)]
    order = sorted(range(len(widths)), key=lambda k: -widths[k])
    counts = [sum(1 for _ in batches_of(order, widths, batch_size, equal=equal)) for equal in (False, True)]
    if counts[1] > counts[0]:
        report_equal_lengths(reader.model, "right", len(widths), counts[1])


def _separate(
    reader: RowReader, prefix: CommonPrefix, questions: Sequence[Question], batch_size: int, tokens: int
) -> list[list[float]]:
    """The log-likelihood of each option of each question, each input run from the beginning of its prompt."""
    found = [[0.0] * len(tails) for _, tails in questions]
    rows = [
        (n, Row(head + inner, _reads(len(head), tails, options), len(head)))
        for n, (head, tails) in enumerate(questions)
        for inner, options in passes(tails)
    ]
    widths = [len(row.tokens) for _, row in rows]
    order = sorted(range(len(rows)), key=lambda k: -widths[k])
    equal = not takes_padding(reader.model, "right")
    for chosen in batches_of(order, widths, batch_size, equal=equal, tokens=tokens):
        values = prefix.read([rows[k][1] for k in chosen])
        for k, row_values in zip(chosen, values, strict=True):
            n, row = rows[k]
            for (_, _, option), value in zip(row.reads, row_values, strict=True):
                found[n][option] += value
    return found


def _reads(prompt: int, tails: Sequence[list[int]], options: Sequence[int]) -> list[tuple[int, int, int]]:
    """What is read of the tokens of some options behind a prompt."""
    return [(prompt - 1 + k, token, i) for i in options for k, token in enumerate(tails[i])]


def _scores(
    options: Sequence[str], tails: Sequence[list[int]], values: Sequence[float], normalise: Normalise
) -> Scores:
    lengths = [len(tail) for tail in tails]
    divisors = {
        "none": [1] * len(options),
        "tokens": lengths,
        "bytes": [len(option.encode()) for option in options],
    }[normalise]
    return Scores([value / divisor for value, divisor in zip(values, divisors, strict=True)], sum(lengths))
