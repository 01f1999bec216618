"""Reads examples that hold token ids, and checks encoded ones against the model that is to read them."""

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from headedit.data.batches import IGNORED, Encoded, token_embeddings
from headedit.data.tokens import Span
from headedit.errors import HeadEditError

_SHOWN = 60
_LARGEST = 2**31
"""No vocabulary has as many tokens, and they are stored in 32 bits."""


def is_encoded(example: Any) -> bool:
    """Whether an example holds token ids rather than text."""
    return isinstance(example, Mapping) and example.get("input_ids") is not None


def read_row(example: Mapping[str, Any], where: str, *, labelled: bool = True) -> Encoded:
    """Reads ``input_ids`` and ``labels``, without the padding that an ``attention_mask`` masks.

    Args:
        example: the row; each field is a list, or an array of one dimension.
        where: names the row in messages.
        labelled: read ``labels``, too; otherwise they are left empty.

    Raises:
        HeadEditError: a field does not list whole numbers, the lengths differ, or the mask leaves out a token between
            others or one that has a label.
    """
    ids = _whole_numbers(example["input_ids"], "input_ids", where)
    labels = _whole_numbers(example.get("labels", ()), "labels", where) if labelled else []
    if labelled and len(labels) != len(ids):
        raise HeadEditError(f"{where}: has {len(ids)} input_ids but {len(labels)} labels.")
    if example.get("attention_mask") is not None:
        mask = _whole_numbers(example["attention_mask"], "attention_mask", where)
        begin, end = _unmasked(mask, len(ids), where)
        if any(label != IGNORED for label in [*labels[:begin], *labels[end:]]):
            raise HeadEditError(
                f"{where}: attention_mask leaves out a token that has a label; give such tokens the label {IGNORED}."
            )
        ids, labels = ids[begin:end], labels[begin:end]
    return {"input_ids": ids, "labels": labels}


@dataclass(frozen=True)
class Vocabulary:
    """How many token ids a model reads, and how many it gives logits for; None for no limit."""

    read: int | None = None
    predicted: int | None = None

    @staticmethod
    def of(model: nn.Module) -> "Vocabulary":
        """The sizes of a model's own tables, whatever its config says of them."""
        try:
            read = token_embeddings(model).shape[0]
        except HeadEditError:  # several tables, as of several streams of tokens
            return Vocabulary()
        table = model.get_input_embeddings()  # type: ignore[operator]
        get = getattr(model, "get_output_embeddings", None)
        head = get() if callable(get) else None
        return Vocabulary(_number(table, "num_embeddings") or read, _number(head, "out_features"))

    def has(self, token: int | None) -> bool:
        """Whether the model reads a token id; False for None."""
        return token is not None and 0 <= token < (_LARGEST if self.read is None else self.read)

    def padding(self, tokenizer: Any) -> int:
        """The token that pads a batch: that of a tokenizer, or 0 where it has none or the model does not have it."""
        pad = getattr(tokenizer, "pad_token_id", None)
        return int(pad) if pad is not None and self.has(pad) else 0

    def check(self, row: Encoded, where: str) -> None:
        """Raises a HeadEditError for a row without tokens, with an id that the model does not have, or without a loss.

        A label is predicted from the token before it, so the label of the first token carries no loss.
        """
        ids, labels = row["input_ids"], row["labels"]
        if not ids:
            raise HeadEditError(f"{where}: has no token, so there is nothing to learn from it.")
        self.check_ids(ids, where)
        known = [label for label in labels if label != IGNORED]
        largest = self.read if self.predicted is None else self.predicted
        bound = _LARGEST if largest is None else largest
        if known and (min(known) < 0 or max(known) >= bound):
            wrong = next(label for label in known if not 0 <= label < bound)
            limit = "a token id" if largest is None else f"one of the {largest} token ids that the model predicts"
            raise HeadEditError(f"{where}: has the label {wrong}, expected {limit}, or {IGNORED} for no label.")
        if all(label == IGNORED for label in labels[1:]):
            raise HeadEditError(
                f"{where}: has no labelled token after its first, so it has no loss and there is nothing to learn "
                "from it."
            )

    def check_ids(self, ids: list[int], where: str) -> None:
        """Raises a HeadEditError for a token id that the model does not have."""
        if not ids or (self.has(min(ids)) and self.has(max(ids))):
            return
        wrong = next(token for token in ids if not self.has(token))
        have = f"ids are from 0 to {_LARGEST - 1}"
        if self.read is not None:
            have = f"the model's embedding has {self.read} tokens"
        raise HeadEditError(
            f"{where}: has the token id {wrong}, but {have}. Give the model's own tokenizer, or resize the model's "
            "embeddings to the tokenizer."
        )


def labelled_spans(labels: Sequence[int]) -> list[Span]:
    """Where the labelled tokens are that follow each other."""
    known = [False, *(label != IGNORED for label in labels), False]
    edges = [i - 1 for i in range(1, len(known)) if known[i] != known[i - 1]]
    return list(zip(edges[::2], edges[1::2], strict=True))


def _number(module: Any, name: str) -> int | None:
    found = getattr(module, name, None)
    return found if isinstance(found, int) else None


def _whole_numbers(values: Any, key: str, where: str) -> list[int]:
    dimensions = getattr(values, "ndim", 1)
    if dimensions != 1:
        raise HeadEditError(
            f"{where}: {key} has {dimensions} dimensions, expected 1; give the tokens of one example, without a batch."
        )
    try:
        return [operator.index(value) for value in (values.tolist() if hasattr(values, "tolist") else values)]
    except (TypeError, ValueError, OverflowError, RuntimeError):
        shown = repr(values)[:_SHOWN]
        raise HeadEditError(f"{where}: {key} should list whole numbers, found {shown}.") from None


def _unmasked(mask: list[int], tokens: int, where: str) -> tuple[int, int]:
    """The first token that a mask leaves in, and the one after the last."""
    if len(mask) != tokens:
        raise HeadEditError(f"{where}: has {tokens} input_ids but an attention_mask of {len(mask)}.")
    if not set(mask) <= {0, 1}:
        wrong = next(value for value in mask if value not in (0, 1))
        raise HeadEditError(f"{where}: attention_mask holds {wrong}, expected 0 or 1.")
    if not any(mask):
        raise HeadEditError(f"{where}: attention_mask leaves out every token, so there is nothing to learn from it.")
    begin, end = mask.index(1), tokens - mask[::-1].index(1)
    if not all(mask[begin:end]):
        raise HeadEditError(
            f"{where}: attention_mask leaves out tokens between others, which padding on the right cannot express; "
            "take them out of input_ids and labels."
        )
    return begin, end
