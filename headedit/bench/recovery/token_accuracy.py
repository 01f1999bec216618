"""A model's most likely next tokens, and how often they are the labels."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from headedit.data.batches import IGNORED, Encoded, PadRight
from headedit.errors import HeadEditError
from headedit.hf.modes import evaluating

_BATCH = 100


def token_accuracy(model: nn.Module, rows: Sequence[Encoded], *, batch_size: int = _BATCH) -> float:
    """Share of the labelled tokens that are the most likely ones to the model, in eval mode.

    Args:
        model: a causal LM; every module of it is returned to the mode that it was in.
        rows: examples as token ids and labels, the label of a token at its own place.
        batch_size: examples per batch.

    Raises:
        HeadEditError: there is no labelled token.
    """
    device = next(model.parameters()).device
    hits = counted = 0
    with evaluating(model):
        for start in range(0, len(rows), batch_size):
            batch = PadRight()(rows[start : start + batch_size])
            found = _most_likely(model, batch["input_ids"].to(device), batch["attention_mask"].to(device)).cpu()
            labels = batch["labels"][:, 1:]
            hits += int((found[:, :-1] == labels).sum())
            counted += int((labels != IGNORED).sum())
    if not counted:
        raise HeadEditError("There is nothing to measure: no token has a label.")
    return hits / counted


def predictions(model: nn.Module, ids: Tensor) -> Tensor:
    """The most likely next token at every position, [examples, tokens], in the model's current mode.

    Args:
        model: a causal LM.
        ids: token ids, [examples, tokens], without padding.
    """
    starts = range(0, len(ids), _BATCH)
    return torch.cat([_most_likely(model, ids[start : start + _BATCH]) for start in starts])


@torch.no_grad()
def _most_likely(model: nn.Module, ids: Tensor, mask: Tensor | None = None) -> Tensor:
    logits: Tensor = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
    return logits.argmax(-1)
