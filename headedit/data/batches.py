"""Encoded examples, and batches of them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, overload

import torch
from torch import Tensor

IGNORED = -100
"""The label of a token that carries no loss, as in transformers."""

Encoded = dict[str, list[int]]
"""``input_ids`` and ``labels``."""


class StoredRows(Sequence[Encoded]):
    """Encoded examples that stay on disk, in a ``datasets.Dataset`` with ``input_ids`` and ``labels``."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    @overload
    def __getitem__(self, index: int) -> Encoded: ...

    @overload
    def __getitem__(self, index: slice) -> "StoredRows": ...

    def __getitem__(self, index: int | slice) -> "Encoded | StoredRows":
        if isinstance(index, slice):
            return StoredRows(self.dataset.select(range(*index.indices(len(self)))))
        row: Encoded = self.dataset[index]
        return row


@dataclass(frozen=True)
class PadRight:
    """Collates examples into a batch, padded on the right: ids, mask and labels, each [batch, tokens]."""

    pad_token_id: int = 0

    def __call__(self, rows: Sequence[Encoded]) -> dict[str, Tensor]:
        """The batch of some examples."""
        rows = list(rows)
        width = max(len(row["input_ids"]) for row in rows)

        def padded(values: Iterable[list[int]], fill: int) -> Tensor:
            return torch.tensor([v + [fill] * (width - len(v)) for v in values])

        return {
            "input_ids": padded((row["input_ids"] for row in rows), self.pad_token_id),
            "attention_mask": padded(([1] * len(row["input_ids"]) for row in rows), 0),
            "labels": padded((row["labels"] for row in rows), IGNORED),
        }
