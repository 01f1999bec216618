"""The loss of a batch without values, made as the trainer makes it."""

from typing import Any

from torch import Tensor

from headedit.data.losses import chunk_size, is_large, losses_in_chunks
from headedit.hf.output_head import head_by_name
from headedit.training.loop.token_loss import token_loss

_CHUNKS = 8  # that are made; more of them take time, and memory only for their hidden states, less than a layer


def planned_loss(model: Any, batch: dict[str, Tensor], *, whole_logits: bool) -> Tensor:
    """The loss as the trainer computes it, a scalar: from whole logits, or in chunks where there are many.

    Every token is taken to have a label, so it takes at least as much memory as with labels on some.

    Args:
        model: a causal LM on the meta device.
        batch: its inputs and ``labels``, which are taken out.
        whole_logits: make all logits however many there are, as the trainer does where processes share weights.

    Raises:
        NotImplementedError: it is not known what the model's head is given.
    """
    labels = batch.pop("labels")
    if labels.dim() > 2:
        loss: Tensor = model(**batch, labels=labels, use_cache=False).loss
        return loss
    head = None if whole_logits else head_by_name(model)
    if head is None or not is_large(labels, head.vocabulary):
        return token_loss(model(**batch, use_cache=False), labels)
    with head.captured() as hidden:
        model(**batch, use_cache=False)
    if hidden.states is None:
        raise NotImplementedError("its head is not called with hidden states")
    targets = labels[:, 1:]
    labelled = targets == targets
    most = _CHUNKS * chunk_size(head.vocabulary)
    return losses_in_chunks(head, hidden.states[:, :-1][labelled][:most], targets[labelled][:most]).sum()
