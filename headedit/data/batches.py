"""Encoded examples, and padded batches of them on the device of a model."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, overload

import torch
from torch import Tensor, nn

from headedit.errors import HeadEditError
from headedit.io.bars import tqdm
from headedit.specs.padding import takes_padding

IGNORED = -100
"""The label of a token that carries no loss, as in transformers."""

Encoded = dict[str, list[int]]
"""An example as ``input_ids`` and ``labels``, the label of a token at its own place."""


class ListedRows(list[Encoded]):
    """Encoded examples in memory.

    Fields:
        date: the date that the chat template was told; None where it did not ask.
    """

    date: str | None = None


class StoredRows(Sequence[Encoded]):
    """Encoded examples that stay on disk, in a ``datasets.Dataset`` with ``input_ids`` and ``labels``.

    Fields:
        dataset: the examples.
        date: as in ``ListedRows``.
    """

    def __init__(self, dataset: Any, date: str | None = None) -> None:
        self.dataset, self.date = dataset, date

    def __len__(self) -> int:
        return len(self.dataset)

    @overload
    def __getitem__(self, index: int) -> Encoded: ...

    @overload
    def __getitem__(self, index: slice) -> "StoredRows": ...

    def __getitem__(self, index: int | slice) -> "Encoded | StoredRows":
        if isinstance(index, slice):
            return StoredRows(self.dataset.select(range(*index.indices(len(self)))), self.date)
        row: Encoded = self.dataset[index]
        return row


@dataclass(frozen=True)
class PadRight:
    """Collates examples into a batch, padded on the right: ids, mask and labels, each [batch, tokens]."""

    pad_token_id: int = 0

    def __call__(self, rows: Sequence[Encoded]) -> dict[str, Tensor]:
        """Makes a batch of examples."""
        rows = list(rows)
        width = max(len(row["input_ids"]) for row in rows)

        def padded(values: Iterable[list[int]], fill: int) -> Tensor:
            return torch.tensor([v + [fill] * (width - len(v)) for v in values])

        return {
            "input_ids": padded((row["input_ids"] for row in rows), self.pad_token_id),
            "attention_mask": padded(([1] * len(row["input_ids"]) for row in rows), 0),
            "labels": padded((row["labels"] for row in rows), IGNORED),
        }


def token_embeddings(model: nn.Module) -> Tensor:
    """The weight of the model's token embeddings, [vocabulary, width].

    Raises:
        HeadEditError: there is not exactly one, as in a model that reads several streams of tokens.
    """
    get = getattr(model, "get_input_embeddings", None)
    weight = getattr(get(), "weight", None) if callable(get) else None
    if not isinstance(weight, Tensor):
        raise HeadEditError(f"{type(model).__name__} has no single table of token embeddings, so it reads no text.")
    return weight


def input_device(model: nn.Module) -> torch.device:
    """The device that a model takes token ids on: of its embeddings, or where accelerate runs offloaded ones."""
    weight = token_embeddings(model)
    if not weight.is_meta:
        return weight.device
    hook = getattr(model.get_input_embeddings(), "_hf_hook", None)  # type: ignore[operator]
    return torch.device(getattr(hook, "execution_device", None) or "cpu")


LARGER = 4
"""How many times as many sequences a batch may have where they are short."""


def batches_of(
    order: Sequence[int], lengths: Sequence[int], size: int, *, equal: bool, tokens: int | None = None
) -> Iterator[list[int]]:
    """Yields indices in batches.

    Args:
        order: the indices, those of equal length next to each other where ``equal`` is set.
        lengths: length of each sequence, in tokens, by index.
        size: largest number of sequences per batch; of short ones ``LARGER`` times as many where ``tokens`` is given.
        equal: whether the sequences of a batch must have one length.
        tokens: largest number of tokens, with padding, of a batch of more than ``size`` sequences; None for no such
            batches.
    """
    most = size if tokens is None else LARGER * size
    batch: list[int] = []
    width = 0
    for i in order:
        wider = max(width, lengths[i])
        full = len(batch) == most or (tokens is not None and len(batch) >= size and (len(batch) + 1) * wider > tokens)
        if batch and (full or (equal and lengths[i] != lengths[batch[0]])):
            yield batch
            batch, wider = [], lengths[i]
        batch.append(i)
        width = wider
    if batch:
        yield batch


def batches(
    model: nn.Module, rows: Sequence[Encoded], batch_size: int, *, what: str, progress: bool, passes: int = 1
) -> Iterator[tuple[Tensor, dict[str, Any], Tensor]]:
    """Yields padded batches of rows of similar length, on the device of the model's embeddings.

    Of a type that takes no padding on the right, rows of equal length alone share a batch.

    Args:
        model: the model that is to read them.
        rows: encoded examples.
        batch_size: rows per batch.
        what: what the bar says.
        progress: show a bar.
        passes: forward passes per batch, which the bar counts.

    Yields:
        The rows' numbers, [batch]; what to call the model with; and labels, [batch, tokens].

    Raises:
        HeadEditError: ``batch_size`` is no whole number, or below 1.
    """
    if not hasattr(batch_size, "__index__") or batch_size < 1:
        raise HeadEditError(f"batch_size: found {batch_size!r}, expected 1 or more, a whole number.")
    device, collate = input_device(model), PadRight()
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]["input_ids"]))
    equal = not takes_padding(model, "right", unknown=True)
    parts = list(batches_of(order, [len(row["input_ids"]) for row in rows], batch_size, equal=equal))
    with tqdm(total=passes * len(parts), desc=what, unit="pass", disable=not progress, leave=False) as bar:
        for chosen in parts:
            batch = {key: value.to(device) for key, value in collate([rows[i] for i in chosen]).items()}
            labels = batch.pop("labels")
            yield torch.tensor(chosen), {**batch, "use_cache": False}, labels
            bar.update(passes)
