"""The plain loss of every single example, which a standard error needs."""

from collections.abc import Callable, Sequence

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from headedit.data.batches import IGNORED, Encoded, token_embeddings
from headedit.hf.modes import evaluating

Collate = Callable[[Sequence[Encoded]], dict[str, Tensor]]


def mean_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean loss of each example on its labelled tokens, in nats per token, [batch], float32; 0 without such a token.

    Args:
        logits: [batch, tokens, vocabulary].
        labels: [batch, tokens], the label of a token at its own place.
    """
    labels = labels[:, 1:].to(logits.device)
    predicted = rearrange(logits[:, :-1].float(), "batch tokens vocabulary -> batch vocabulary tokens")
    losses = cross_entropy(predicted, labels, ignore_index=IGNORED, reduction="none")
    return losses.sum(1) / (labels != IGNORED).sum(1).clamp(min=1)


@torch.no_grad()
def example_losses(model: nn.Module, rows: Sequence[Encoded], collate: Collate, batch_size: int) -> Tensor:
    """Mean loss of each example on its response tokens, in eval mode, in nats per token.

    Args:
        model: a causal LM; every module of it is put back into the mode it was in.
        rows: examples as token ids and labels.
        collate: makes a padded batch.
        batch_size: examples per batch.

    Returns:
        [examples], float32 on the CPU.
    """
    device = token_embeddings(model).device
    found = []
    with evaluating(model):
        for start in range(0, len(rows), batch_size):
            batch = {k: v.to(device) for k, v in collate(rows[start : start + batch_size]).items()}
            labels = batch.pop("labels")
            found.append(mean_losses(model(**batch, use_cache=False).logits, labels).cpu())
    return torch.cat(found)
