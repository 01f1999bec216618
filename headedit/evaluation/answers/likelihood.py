"""Log-likelihood of each option as the continuation of its prompt, batched; shared beginnings are run once.

The log-likelihood of an option of tokens o_1 … o_m needs the model on prompt + o_1 … o_(m-1). Options whose inputs
are prefixes of each other are read from the same row: letters, or ``answer1`` to ``answer5``, cost one forward pass per
prompt. Rows are padded on the right, where causal attention never looks, so every architecture sees the same positions.
"""

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from headedit.data import prompt_ids, response_ids
from headedit.data.batches import IGNORED, token_embeddings
from headedit.data.rows import Vocabulary
from headedit.errors import HeadEditError
from headedit.evaluation.answers.generation import by_length, check_room, padding
from headedit.evaluation.answers.padding import batches_of, report_equal_lengths, takes_padding
from headedit.hf.modes import evaluating

Normalise = Literal["none", "tokens", "bytes"]


@dataclass(frozen=True)
class _Pass:
    """One row of a forward pass: the options of an example that are read from it.

    Fields:
        tokens: prompt and the beginning of an option.
        start: where the options begin.
        options: index and tokens of each option whose input is a prefix of the row.
    """

    tokens: list[int]
    start: int
    options: list[tuple[int, list[int]]]


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
    progress: bool = True,
    describe: str = "scoring",
) -> Iterator[list[tuple[int, Scores]]]:
    """Computes log-likelihoods of the options of every question, batch by batch, the longest first.

    Args:
        model: a causal LM, edited or not.
        tokenizer: its tokenizer.
        questions: (prompt, options), the options as they follow the prompt.
        normalise: divide by the option's number of tokens, or of its bytes in UTF-8.
        batch_size: questions per batch.
        names: what messages call each question; by default its number.
        progress: show a bar.
        describe: what the bar says.

    Returns:
        For every batch the (index of the question, scores of its options).

    Raises:
        HeadEditError: ``questions`` is empty, an option is, a question does not fit the model's context, or it has a
            token id that the model does not have.
    """
    if not questions:
        raise HeadEditError("There is nothing to score: the list of questions is empty.")
    names = [f"Question {i + 1}" for i in range(len(questions))] if names is None else names
    planned, vocabulary = [], Vocabulary.of(model)
    for (prompt, options), name in zip(questions, names, strict=True):
        head = prompt_ids(tokenizer, prompt)
        tails = [_option_ids(tokenizer, prompt, option, name) for option in options]
        check_room(model, head, max(map(len, tails)), name)
        for tail in tails:
            vocabulary.check({"input_ids": head + tail, "labels": [IGNORED] * len(head) + tail}, name)
        planned.append((_passes(head, tails), [len(tail) for tail in tails]))
    lengths = [max(len(row.tokens) for row in rows) for rows, _ in planned]
    pad, equal = padding(tokenizer, model), not takes_padding(model, "right")
    if equal:
        _report_passes(model, [rows for rows, _ in planned], lengths, batch_size)
    with evaluating(model):
        for batch in by_length(lengths, batch_size, progress, describe):
            found: dict[tuple[int, int], float] = {}
            rows = [(i, row) for i in batch for row in planned[i][0]]
            widths = [len(row.tokens) for _, row in rows]
            for chosen in _parts(widths, batch_size, equal):
                part = [rows[k] for k in chosen]
                for (i, row), values in zip(part, _run_passes(model, [row for _, row in part], pad), strict=True):
                    found |= {(i, option): value for (option, _), value in zip(row.options, values, strict=True)}
            yield [(i, _scores(questions[i][1], planned[i][1], found, i, normalise)) for i in batch]


def _parts(widths: Sequence[int], batch_size: int, equal: bool) -> Iterator[list[int]]:
    """The rows of each pass over some questions, as indices."""
    order = sorted(range(len(widths)), key=lambda k: -widths[k]) if equal else range(len(widths))
    return batches_of(order, widths, batch_size, equal=equal)


def _report_passes(
    model: nn.Module, planned: Sequence[Sequence[_Pass]], lengths: Sequence[int], batch_size: int
) -> None:
    """Says how many passes it takes that rows of equal length alone share one, where that is more."""
    batches = list(by_length(lengths, batch_size, False, ""))
    widths = [[len(row.tokens) for i in batch for row in planned[i]] for batch in batches]
    passes = [sum(1 for part in widths for _ in _parts(part, batch_size, equal)) for equal in (False, True)]
    if passes[1] > passes[0]:
        report_equal_lengths(model, "right", sum(map(len, widths)), passes[1])


def _option_ids(tokenizer: Any, prompt: str, option: str, name: str) -> list[int]:
    ids = response_ids(tokenizer, prompt, option)
    ids = ids[:-1] if tokenizer.eos_token_id is not None else ids
    if not ids:
        raise HeadEditError(f"{name}: the option {option!r} has no tokens, so it has no likelihood.")
    return ids


def _passes(head: list[int], tails: list[list[int]]) -> list[_Pass]:
    """The fewest rows such that every option's input is a prefix of one."""
    rows: list[_Pass] = []
    for i in sorted(range(len(tails)), key=lambda i: -len(tails[i])):
        inner = tails[i][:-1]
        for row in rows:
            if row.tokens[row.start : row.start + len(inner)] == inner:
                row.options.append((i, tails[i]))
                break
        else:
            rows.append(_Pass(head + inner, len(head), [(i, tails[i])]))
    return rows


def _run_passes(model: nn.Module, rows: Sequence[_Pass], pad: int) -> list[list[float]]:
    """Log-likelihood of the options of each row, from one forward pass."""
    width = max(len(row.tokens) for row in rows)
    first = min(row.start for row in rows) - 1  # the position that predicts the first token of an option
    device = token_embeddings(model).device
    ids = torch.tensor([row.tokens + [pad] * (width - len(row.tokens)) for row in rows], device=device)
    mask = torch.tensor([[1] * len(row.tokens) + [0] * (width - len(row.tokens)) for row in rows], device=device)
    takes = inspect.signature(model.forward).parameters
    kept = {"logits_to_keep": width - first} if "logits_to_keep" in takes else {}
    logits: Tensor = model(input_ids=ids, attention_mask=mask, use_cache=False, **kept).logits
    first = width - logits.shape[1]
    results = []
    for row, row_logits in zip(rows, logits, strict=True):
        begin = row.start - 1 - first
        # [option tokens, vocabulary]; float32 before the sum over the vocabulary
        predicted = row_logits[begin : begin + max(len(tail) for _, tail in row.options)].float().log_softmax(-1)
        results.append([sum(predicted[k, token].item() for k, token in enumerate(tail)) for _, tail in row.options])
    return results


def _scores(
    options: Sequence[str], lengths: list[int], found: dict[tuple[int, int], float], i: int, normalise: Normalise
) -> Scores:
    divisors = {
        "none": [1] * len(options),
        "tokens": lengths,
        "bytes": [len(option.encode()) for option in options],
    }[normalise]
    return Scores([found[i, k] / divisors[k] for k in range(len(options))], sum(lengths))
