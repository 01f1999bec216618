"""Examples to measure edits on: token ids with a label on every token that carries loss, in padded batches."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence
from tqdm.auto import tqdm

from headedit.data import prompt_ids, response_ids, to_pair
from headedit.errors import HeadEditError
from headedit.hf.config import context_length

IGNORED = -100
"""The label of a token that carries no loss, as in transformers."""

Row = dict[str, list[int]]
"""An example as ``input_ids`` and ``labels``, the label of a token at its own place."""


def labelled_rows(data: Iterable[Any], tokenizer: Any, model: nn.Module) -> list[Row]:
    """Token ids and labels of every example, labels only on the response and its end-of-text.

    Args:
        data: (prompt, response) pairs, records with such fields, or rows that hold ``input_ids`` and ``labels``.
        tokenizer: the model's tokenizer; None is enough where all examples hold ``input_ids``.
        model: the model that is to read them.

    Raises:
        HeadEditError: there are none; one is of another form, has no labelled token after its first, is longer than
            the model's context, or has an id that the model does not know.
    """
    rows = [_row(example, tokenizer, f"Example {i + 1}") for i, example in enumerate(data)]
    if not rows:
        raise HeadEditError("There is nothing to measure on: the set of examples is empty.")
    room = context_length(model)
    known = embeddings_of(model).shape[0]
    for i, row in enumerate(rows):
        if all(label == IGNORED for label in row["labels"][1:]):
            raise HeadEditError(f"Example {i + 1} has no labelled token after its first, so it has no loss.")
        if room is not None and len(row["input_ids"]) > room:
            raise HeadEditError(
                f"Example {i + 1} has {len(row['input_ids'])} tokens, more than the model's context of {room}. "
                "Shorten it or leave it out."
            )
        wrong = next((token for token in row["input_ids"] if not 0 <= token < known), None)
        if wrong is not None:
            raise HeadEditError(
                f"Example {i + 1} has the token id {wrong}, but the model knows {known} tokens. Give the model's own "
                "tokenizer."
            )
    return rows


def embeddings_of(model: nn.Module) -> Tensor:
    """The weight of the model's token embeddings, [vocabulary, width].

    Raises:
        HeadEditError: there is not just one, as in a model that reads several streams of tokens.
    """
    get = getattr(model, "get_input_embeddings", None)
    weight = getattr(get(), "weight", None) if callable(get) else None
    if not isinstance(weight, Tensor):
        raise HeadEditError(f"{type(model).__name__} has no single table of token embeddings, so it reads no text.")
    return weight


def _row(example: Any, tokenizer: Any, where: str) -> Row:
    if isinstance(example, Mapping) and "input_ids" in example:
        row = {key: [int(i) for i in example.get(key, ())] for key in ("input_ids", "labels")}
        if len(row["labels"]) != len(row["input_ids"]):
            raise HeadEditError(f"{where}: has {len(row['input_ids'])} input_ids but {len(row['labels'])} labels.")
        return row
    if tokenizer is None:
        raise HeadEditError(f"{where}: is text, and there is no tokenizer; give tokenizer=...")
    texts = isinstance(example, tuple | list) and [type(part) for part in example] == [str, str]
    prompt, response = example if texts else to_pair(example, where)
    head, tail = prompt_ids(tokenizer, prompt), response_ids(tokenizer, prompt, response)
    return {"input_ids": head + tail, "labels": [IGNORED] * len(head) + tail}


def batches(
    model: nn.Module, rows: Sequence[Row], batch_size: int, *, what: str, progress: bool, passes: int = 1
) -> Iterator[tuple[Tensor, dict[str, Tensor], Tensor]]:
    """Rows of like length together, padded on the right, on the device of the model's embeddings.

    Args:
        model: the model that is to read them.
        rows: of ``labelled_rows``.
        batch_size: rows a batch.
        what: a word for the bar.
        progress: show a bar.
        passes: forward passes that a batch costs, which the bar counts.

    Yields:
        The rows' numbers, [batch]; what to call the model with; and labels, [batch, tokens].

    Raises:
        HeadEditError: ``batch_size`` is below 1.
    """
    if batch_size < 1:
        raise HeadEditError(f"batch_size: found {batch_size}, expected 1 or more.")
    device = embeddings_of(model).device
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]["input_ids"]))
    starts = range(0, len(order), batch_size)
    with tqdm(total=passes * len(starts), desc=what, unit="pass", disable=not progress, leave=False) as bar:
        for start in starts:
            chosen = order[start : start + batch_size]
            ids = pad_sequence([torch.tensor(rows[i]["input_ids"]) for i in chosen], batch_first=True)
            labels = [torch.tensor(rows[i]["labels"]) for i in chosen]
            lengths = torch.tensor([len(rows[i]["input_ids"]) for i in chosen])
            mask = (torch.arange(ids.shape[1]) < lengths[:, None]).long()
            inputs = {"input_ids": ids.to(device), "attention_mask": mask.to(device)}
            yield (
                torch.tensor(chosen),
                {**inputs, "use_cache": False},  # type: ignore[dict-item]
                pad_sequence(labels, batch_first=True, padding_value=IGNORED).to(device),
            )
            bar.update(passes)


def losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean loss of each example on its labelled tokens, in nats a token, [batch], float32.

    Args:
        logits: [batch, tokens, vocabulary].
        labels: [batch, tokens], the label of a token at its own place.
    """
    labels = labels[:, 1:].to(logits.device)
    each = cross_entropy(logits[:, :-1].float().transpose(1, 2), labels, ignore_index=IGNORED, reduction="none")
    return each.sum(1) / (labels != IGNORED).sum(1)
