"""The plain loss of every single example, which a standard error needs."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from headedit.data.batches import IGNORED, Encoded
from headedit.hf.modes import evaluating

Collate = Callable[[Sequence[Encoded]], dict[str, Tensor]]


@torch.no_grad()
def example_losses(model: nn.Module, rows: Sequence[Encoded], collate: Collate, batch_size: int) -> Tensor:
    """Mean loss of each example on its response tokens, in eval mode, in nats a token.

    Args:
        model: a causal LM; every module of it is put back into the mode it was in.
        rows: examples as token ids and labels.
        collate: makes a padded batch.
        batch_size: examples a batch.

    Returns:
        [examples], float32 on the CPU.
    """
    device = model.get_input_embeddings().weight.device  # type: ignore[operator]
    found = []
    with evaluating(model):
        for start in range(0, len(rows), batch_size):
            batch = {k: v.to(device) for k, v in collate(rows[start : start + batch_size]).items()}
            labels = batch.pop("labels")[:, 1:]
            logits = model(**batch, use_cache=False).logits[:, :-1].float()
            labels = labels.to(logits.device)
            losses = cross_entropy(logits.transpose(1, 2), labels, ignore_index=IGNORED, reduction="none")
            counted = (labels != IGNORED).sum(1).clamp(min=1)
            found.append((losses.sum(1) / counted).cpu())
    return torch.cat(found)
