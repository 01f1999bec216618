"""The plain loss of tokens and examples, with logits for the response tokens alone where logits take much memory."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

from headedit.data.batches import IGNORED, Encoded, token_embeddings
from headedit.data.equal_lengths import in_equal_lengths
from headedit.data.prompts import labelled, prompts_of
from headedit.hf.modes import evaluating
from headedit.hf.output_head import Hidden, OutputHead, output_head

Collate = Callable[[Sequence[Encoded]], dict[str, Tensor]]

LARGEST = 2**24
"""How many logits are made at once; a batch with more of them gets those of response tokens, in chunks."""


def mean_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean loss of each example on its labelled tokens, in nats per token, [batch], float32; 0 without such a token.

    Args:
        logits: [batch, tokens, vocabulary]; positions before the tokens, such as those of a prompt that is learned, are
            left out.
        labels: [batch, tokens], the label of a token at its own place.
    """
    logits = logits[:, -labels.shape[1] :]
    labels = labels[:, 1:].to(logits.device)
    predicted = rearrange(logits[:, :-1].float(), "batch tokens vocabulary -> batch vocabulary tokens")
    losses = cross_entropy(predicted, labels, ignore_index=IGNORED, reduction="none")
    return losses.sum(1) / (labels != IGNORED).sum(1).clamp(min=1)


def chunk_size(vocabulary: int) -> int:
    """How many tokens have their logits made at once."""
    return max(1, LARGEST // vocabulary)


def is_large(labels: Tensor, vocabulary: int) -> bool:
    """Whether a batch has so many logits that they are made for response tokens alone, in chunks."""
    return labels.dim() == 2 and labels.numel() * vocabulary > LARGEST


def response_losses(head: OutputHead, hidden: Hidden, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The loss of each labelled token, in nats; the logits of other tokens are not made.

    Args:
        head: makes the logits.
        hidden: what it was given in a pass, [batch, tokens, width]; as in ``mean_losses``.
        labels: [batch, tokens], the label of a token at its own place.

    Returns:
        The losses, [labelled tokens], float32; and the example that each is of, [labelled tokens].
    """
    assert hidden.states is not None
    states = hidden.states[:, -labels.shape[1] : -1]
    targets = labels[:, 1:].to(states.device)
    chosen = targets != IGNORED
    with hidden.as_in_the_pass():
        return losses_in_chunks(head, states[chosen], targets[chosen]), chosen.nonzero()[:, 0]


def losses_in_chunks(head: OutputHead, states: Tensor, targets: Tensor) -> Tensor:
    """The loss of each of some tokens, in nats, [tokens], float32, from the logits of a chunk of them at a time.

    Of several chunks, the logits are made again in the backward pass, so that those of one are alive at a time.

    Args:
        head: makes the logits.
        states: what it is given, [tokens, width].
        targets: the tokens to predict, [tokens].
    """

    def losses(states: Tensor, targets: Tensor) -> Tensor:
        logits = head.logits(states).float()
        return cross_entropy(logits, targets.to(logits.device), reduction="none")

    size = chunk_size(head.vocabulary)
    again = torch.is_grad_enabled() and len(states) > size
    parts = zip(torch.split(states, size), torch.split(targets, size), strict=True)
    return torch.cat(
        [
            checkpoint(losses, part, target, use_reentrant=False) if again else losses(part, target)
            for part, target in parts
        ]
    )


class HeadInputs(dict[str, Any]):
    """The output of a model without its logits: what its head was given, from which a loss is computed.

    Args:
        head: how logits are made.
        hidden: what it was given.
    """

    def __init__(self, head: OutputHead, hidden: Hidden) -> None:
        super().__init__()
        self._head, self.hidden = head, hidden

    def with_states(self, states: Tensor) -> "HeadInputs":
        """The same with other hidden states, [batch, tokens, width]."""
        return HeadInputs(self._head, replace(self.hidden, states=states))

    def loss(self, labels: Tensor, num_items_in_batch: Tensor | int | None = None) -> Tensor:
        """The sum of the losses of labelled tokens, divided by their number, in nats per token, a scalar.

        Args:
            labels: [batch, tokens], the label of a token at its own place.
            num_items_in_batch: divides the sum in place of their number, where several batches make a step.
        """
        losses, _ = response_losses(self._head, self.hidden, labels)
        number = len(losses) if num_items_in_batch is None else num_items_in_batch
        return losses.sum() / (number.to(losses.device) if torch.is_tensor(number) else number)


class WithoutLogits:
    """A model that makes no logits; it is called as the model is, without labels.

    Args:
        model: the model to call, perhaps inside a wrapper.
        head: how its logits are made; see ``head_of_plain_loss``.
    """

    def __init__(self, model: Any, head: OutputHead) -> None:
        self.model, self.head = model, head

    def __call__(self, **inputs: Any) -> HeadInputs:
        """What the model's head was given."""
        with self.head.captured() as hidden:
            self.model(**inputs)
        return HeadInputs(self.head, hidden)


def head_of_plain_loss(model: Any) -> OutputHead | None:
    """The head of a model whose own loss is the mean over all labelled tokens of a batch, each at the place before it.

    It is tried on a few tokens; None where the loss is another one, as with that of routers, or the head is.
    """
    head = _tried_head(model)
    if head is None:
        return None
    ids = torch.tensor([[3, 4, 5, 6], [7, 8, 9, 10]], device=token_embeddings(model).device) % head.vocabulary
    labels = ids.clone()
    labels[0, :2] = IGNORED
    with torch.no_grad(), evaluating(model):
        try:
            theirs = model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=labels)
        except (RuntimeError, TypeError, ValueError):
            return None  # it has labels of another shape
        with head.captured() as hidden, labelled(labels):
            model(input_ids=ids, attention_mask=torch.ones_like(ids))
        if hidden.states is None or theirs.loss is None:
            return None
        ours = response_losses(head, hidden, labels)[0].mean()
    precise = theirs.logits.dtype in (torch.float32, torch.float64)
    return (
        head
        if torch.allclose(theirs.loss.float(), ours.to(theirs.loss.device), rtol=1e-5 if precise else 1e-2)
        else None
    )


def total_loss(model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, int]:
    """The sum of the losses of a batch's labelled tokens, in nats, a scalar with a gradient; and their number.

    Args:
        model: a causal LM.
        batch: its inputs and ``labels``, [batch, tokens].
    """
    embeddings = token_embeddings(model)
    inputs = {k: v.to(embeddings.device) for k, v in batch.items()}
    labels = inputs.pop("labels")
    head = _tried_head(model) if is_large(labels, embeddings.shape[0]) else None
    called = in_equal_lengths(model, inputs, model if head is None else WithoutLogits(model, head))
    with labelled(labels):
        found = called(**inputs, use_cache=False)
    if head is None:
        means = mean_losses(found["logits"], labels)
        total = (means * (labels[:, 1:] != IGNORED).sum(1).to(means.device)).sum()
    else:
        total = found.loss(labels, 1)
    return total, int((labels[:, 1:] != IGNORED).sum())


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
    embeddings = token_embeddings(model)
    found, head, tried = [], None, False
    with evaluating(model):
        for start in range(0, len(rows), batch_size):
            batch = {k: v.to(embeddings.device) for k, v in collate(rows[start : start + batch_size]).items()}
            labels = batch.pop("labels")
            large = is_large(labels, embeddings.shape[0])
            if large and not tried:
                head, tried = _tried_head(model), True
            if large and head is not None:
                found.append(_mean_response_losses(model, head, batch, labels).cpu())
            else:
                called = in_equal_lengths(model, batch, model)
                with labelled(labels):
                    logits = called(**batch, use_cache=False)["logits"]
                found.append(mean_losses(logits, labels).cpu())
    return torch.cat(found)


def _tried_head(model: Any) -> OutputHead | None:
    with prompts_of([0]):  # it is tried on tokens without labels
        return output_head(model)


def _mean_response_losses(model: Any, head: OutputHead, batch: dict[str, Tensor], labels: Tensor) -> Tensor:
    with labelled(labels):
        given: HeadInputs = in_equal_lengths(model, batch, WithoutLogits(model, head))(**batch, use_cache=False)
    losses, example = response_losses(head, given.hidden, labels)
    sums = losses.new_zeros(len(labels)).index_add(0, example.to(losses.device), losses)
    return sums / (labels[:, 1:] != IGNORED).sum(1).clamp(min=1).to(sums.device)
