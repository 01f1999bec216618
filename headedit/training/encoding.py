"""Examples as token ids: the loss is on the response, and a response is never cut silently."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from headedit.errors import HeadEditError
from headedit.text import prompt_ids, response_ids, to_pair

IGNORED = -100
"""The label of a token that carries no loss, as in transformers."""

logger = logging.getLogger(__name__)

Encoded = dict[str, list[int]]


def encode(
    examples: Iterable[Any], tokenizer: Any, *, max_length: int | None, name: str, progress: bool = True
) -> list[Encoded]:
    """``input_ids`` and ``labels`` of every example, labels only on the response and its end-of-text.

    Args:
        examples: (prompt, response) pairs, records with such fields, or records that hold ``input_ids`` and
            ``labels`` already and pass as they are; a ``datasets.Dataset`` of any of these.
        tokenizer: the model's tokenizer; None is enough where all examples hold ``input_ids``.
        max_length: examples of more tokens are left out, and the log says how many; None for no limit.
        name: what to call the set in messages.
        progress: show a bar.

    Raises:
        HeadEditError: the set is empty, an example is of another form, or none is short enough.
    """
    kept: list[Encoded] = []
    too_long = 0
    for i, example in enumerate(tqdm(examples, desc=f"tokenising {name}", disable=not progress, leave=False)):
        row = _encode_one(example, tokenizer, f"{name} example {i + 1}")
        if max_length is not None and len(row["input_ids"]) > max_length:
            too_long += 1
        else:
            kept.append(row)
    if too_long and kept:
        logger.warning(
            "%d of %d %s examples are longer than %d tokens and are left out; none was cut.",
            too_long,
            too_long + len(kept),
            name,
            max_length,
        )
    if not kept:
        reason = f"all {too_long} examples are longer than {max_length} tokens" if too_long else "it is empty"
        raise HeadEditError(f"The {name} set has nothing to use: {reason}.")
    return kept


def _encode_one(example: Any, tokenizer: Any, where: str) -> Encoded:
    if isinstance(example, Mapping) and "input_ids" in example:
        if "labels" not in example or len(example["labels"]) != len(example["input_ids"]):
            raise HeadEditError(f"{where}: has input_ids but not as many labels.")
        return {key: [int(i) for i in example[key]] for key in ("input_ids", "labels")}
    if tokenizer is None:
        raise HeadEditError(f"{where}: is text, and there is no tokenizer; give tokenizer=...")
    if isinstance(example, tuple | list) and len(example) == 2:
        prompt, response = example
    else:
        prompt, response = to_pair(example, where)
    head, tail = prompt_ids(tokenizer, prompt), response_ids(tokenizer, prompt, response)
    return {"input_ids": head + tail, "labels": [IGNORED] * len(head) + tail}


@dataclass(frozen=True)
class PadRight:
    """Collates examples into a batch, padded on the right: ids, mask and labels, each [batch, tokens]."""

    pad_token_id: int = 0

    def __call__(self, rows: Sequence[Encoded]) -> dict[str, Tensor]:
        """The batch of some examples."""
        width = max(len(row["input_ids"]) for row in rows)

        def padded(values: Iterable[list[int]], fill: int) -> Tensor:
            return torch.tensor([v + [fill] * (width - len(v)) for v in values])

        return {
            "input_ids": padded((row["input_ids"] for row in rows), self.pad_token_id),
            "attention_mask": padded(([1] * len(row["input_ids"]) for row in rows), 0),
            "labels": padded((row["labels"] for row in rows), IGNORED),
        }
