"""Log-likelihoods of options from one pass over their prompt, whose cache all of them continue.

The cache is a plain one of keys and values, which can be repeated for each option; other types are not shared. The
first batch is compared with passes of the whole inputs, so that a model that reads its cache otherwise is noticed.
"""

import logging
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from headedit.evaluation.answers.padding import batches_of, takes_padding
from headedit.evaluation.answers.plain_cache import Checked, agree, is_plain, selected
from headedit.evaluation.answers.rows import Row, RowReader

logger = logging.getLogger(__name__)

_COPIES = 8
"""Tokens that copies of a cache may hold at once, in units of the tokens of a batch."""
Question = tuple[list[int], list[list[int]]]
"""The token ids of a prompt, and of each option."""


class SharedPrompts(Checked):
    """Scores options with one pass over each prompt, for as long as the model is seen to allow it.

    Args:
        reader: runs rows.
        batch_size: rows per batch.
        tokens: tokens per batch.
    """

    def __init__(self, reader: RowReader, batch_size: int, tokens: int) -> None:
        self._reader, self._batch_size, self._tokens = reader, batch_size, tokens
        self._left = takes_padding(reader.model, "left")
        super().__init__("past_key_values" in reader.takes)

    def scores(self, questions: Sequence[Question]) -> list[list[float]] | None:
        """The log-likelihood of each option of each question; None where prompts cannot be shared."""
        return self.tried(lambda: self._scores(questions), lambda found: self._right(questions, found))

    def _scores(self, questions: Sequence[Question]) -> list[list[float]] | None:
        found = [[0.0] * len(tails) for _, tails in questions]
        widths = [len(head) for head, _ in questions]
        order = sorted(range(len(questions)), key=lambda i: -widths[i])
        for chosen in batches_of(order, widths, self._batch_size, equal=not self._left, tokens=self._tokens):
            part = [questions[i] for i in chosen]
            prompts = [
                Row(head, [(len(head) - 1, tail[0], k) for k, tail in enumerate(tails)], len(head))
                for head, tails in part
            ]
            values, mask, out = self._reader.read(prompts, left=True, use_cache=True)
            cache = getattr(out, "past_key_values", None)
            if not is_plain(cache):
                return None
            for i, prompt, prompt_values in zip(chosen, prompts, values, strict=True):
                _add(found[i], prompt, prompt_values)
            endings = [(n, row) for n, (head, tails) in enumerate(part) for row in _endings(tails, len(head))]
            for some in self._chunks(endings, mask.shape[1]):
                copied = selected(cache, torch.tensor([n for n, _ in some], device=mask.device))
                past = mask[[n for n, _ in some]]
                rows = [row for _, row in some]
                values, _, _ = self._reader.read(rows, past=past, past_key_values=copied, use_cache=True)
                for (n, row), row_values in zip(some, values, strict=True):
                    _add(found[chosen[n]], row, row_values)
        return found

    def _chunks(self, endings: list[tuple[int, Row]], width: int) -> Iterator[list[tuple[int, Row]]]:
        lengths = [len(row.tokens) for _, row in endings]
        most = max(1, _COPIES * self._tokens // (width + max(lengths, default=0)))
        order = sorted(range(len(endings)), key=lambda i: -lengths[i])
        for chosen in batches_of(order, lengths, most, equal=not takes_padding(self._reader.model, "right")):
            yield [endings[i] for i in chosen]

    def _right(self, questions: Sequence[Question], found: list[list[float]]) -> bool:
        """Whether the longest option of the longest and of the shortest question has the value that it has alone."""
        order = sorted(range(len(questions)), key=lambda i: len(questions[i][0]))
        for i in {order[0], order[-1]}:
            option, alone, out = longest_alone(self._reader, questions[i])
            if not agree(found[i][option], alone, out.logits.dtype):
                logger.warning(
                    "%s gives an option %.4g nats after the cache of its prompt and %.4g without a cache, so each "
                    "option is run with its whole prompt.",
                    type(self._reader.model).__name__,
                    found[i][option],
                    alone,
                )
                return False
        return True


def longest_alone(reader: RowReader, question: Question, *, use_cache: bool = False) -> tuple[int, float, Any]:
    """The longest option of a question, its log-likelihood by a pass of its own, and what the model gave."""
    head, tails = question
    option = max(range(len(tails)), key=lambda k: len(tails[k]))
    tail = tails[option]
    row = Row(head + tail[:-1], [(len(head) - 1 + k, token, option) for k, token in enumerate(tail)], len(head))
    values, _, out = reader.read([row], use_cache=use_cache)
    return option, sum(values[0]), out


def passes(tails: Sequence[list[int]]) -> list[tuple[list[int], list[int]]]:
    """The fewest inputs such that that of every option is the beginning of one, each with its options."""
    found: list[tuple[list[int], list[int]]] = []
    for i in sorted(range(len(tails)), key=lambda i: -len(tails[i])):
        inner = tails[i][:-1]
        for tokens, options in found:
            if tokens[: len(inner)] == inner:
                options.append(i)
                break
        else:
            found.append((inner, [i]))
    return found


def _endings(tails: Sequence[list[int]], prompt: int) -> list[Row]:
    """The rows that continue a prompt of some tokens, with what is read of each option after its first token."""
    rows = [
        Row(tokens, [(k, token, i) for i in options for k, token in enumerate(tails[i][1:])], prompt)
        for tokens, options in passes(tails)
    ]
    return [row for row in rows if row.reads]


def _add(totals: list[float], row: Row, values: Sequence[float]) -> None:
    for (_, _, option), value in zip(row.reads, values, strict=True):
        totals[option] += value
