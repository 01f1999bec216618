"""Passes without padding, for models whose answers it changes: rows of equal length go together."""

import functools
import logging
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from headedit.data.prompts import known_labels, labelled
from headedit.specs.padding import Side, takes_padding

logger = logging.getLogger(__name__)


class InEqualLengths:
    """A model whose padded batches are run in parts: rows with the same padding together, without that padding.

    It is called as the model is, with ``attention_mask`` and without labels, and gives the logits of the whole batch,
    [batch, tokens, vocabulary], which are zero at padding.

    Args:
        call: the model, or what gives its hidden states in place of logits, such as ``WithoutLogits``.
    """

    def __init__(self, call: Callable[..., Any]) -> None:
        self._call = call

    def __call__(self, **inputs: Any) -> Any:
        """What the model gives for a batch."""
        mask = inputs["attention_mask"]
        parts = list(_spans(mask))
        found = [(rows, span, self._run(inputs, mask, rows, span)) for rows, span in parts]
        first = found[0][2]
        if hasattr(first, "with_states"):
            states = _joined([(rows, span, part.hidden.states) for rows, span, part in found], mask)
            return first.with_states(states)
        joined: dict[str, Any] = {
            "logits": _joined(
                [(rows, span, part.logits[:, span.start - span.stop :]) for rows, span, part in found], mask
            )
        }
        router = [(len(rows), part.get("aux_loss")) for rows, _, part in found]
        if all(isinstance(loss, Tensor) for _, loss in router):
            joined["aux_loss"] = sum(count * loss for count, loss in router) / len(mask)
        return joined

    def _run(self, inputs: dict[str, Any], mask: Tensor, rows: Tensor, span: slice) -> Any:
        with labelled(_cut(known_labels(), mask, rows, span)):
            return self._call(**_part(inputs, mask, rows, span))


def in_equal_lengths(model: nn.Module, inputs: dict[str, Any], call: Callable[..., Any]) -> Callable[..., Any]:
    """How to call a model with a batch so that its padding changes nothing: as it is, or in ``InEqualLengths``.

    Args:
        model: the base model, whose type says which padding it takes.
        inputs: the batch.
        call: the model in its wrappers, which is called.
    """
    side = wrong_side(model, inputs)
    if side is None:
        return call
    _report(type(model).__name__, side)
    return InEqualLengths(call)


def wrong_side(model: nn.Module, inputs: dict[str, Any]) -> Side | None:
    """The side on which a batch is padded and the model takes no padding, as the spec of its type says; None for none.

    Args:
        model: the base model.
        inputs: the batch; its padding is read off ``attention_mask``.
    """
    mask = inputs.get("attention_mask")
    sides: tuple[Side, ...] = ("left", "right")
    if not isinstance(mask, Tensor) or all(takes_padding(model, side, unknown=True) for side in sides):
        return None  # before a value of the mask is read, for which the host would wait
    if mask.dim() != 2 or bool(mask.all()):
        return None
    ends: dict[Side, Tensor] = {"left": mask[:, 0], "right": mask[:, -1]}
    padded = (side for side, end in ends.items() if not end.all())
    return next((side for side in padded if not takes_padding(model, side, unknown=True)), None)


@functools.cache
def _report(name: str, side: str) -> None:
    """Warns once for each type and side."""
    logger.warning(
        "%s answers differently with padding on the %s; so only examples of equal length share a pass, and batches of "
        "several lengths take several passes.",
        name,
        side,
    )


def _spans(mask: Tensor) -> Iterator[tuple[Tensor, slice]]:
    """The rows, [part], and the columns from the first to the last token, for each part of a batch."""
    used = mask.bool()
    starts = used.int().argmax(1)
    stops = mask.shape[1] - used.flip(1).int().argmax(1)
    places: dict[tuple[int, int], list[int]] = {}
    for row, place in enumerate(zip(starts.tolist(), stops.tolist(), strict=True)):
        places.setdefault(place, []).append(row)
    for (start, stop), rows in places.items():
        yield torch.tensor(rows, device=mask.device), slice(start, stop)


def _part(inputs: dict[str, Any], mask: Tensor, rows: Tensor, span: slice) -> dict[str, Any]:
    return {key: _cut(value, mask, rows, span) for key, value in inputs.items()}


def _cut(value: Any, mask: Tensor, rows: Tensor, span: slice) -> Any:
    if not isinstance(value, Tensor) or value.shape[:1] != mask.shape[:1]:
        return value
    chosen = value[rows.to(value.device)]
    return chosen[:, span] if value.shape[:2] == mask.shape else chosen


def _joined(parts: list[tuple[Tensor, slice, Tensor]], mask: Tensor) -> Tensor:
    """The values of all parts at their places, [batch, tokens, width]."""
    first = parts[0][2]
    whole = first.new_zeros(*mask.shape, first.shape[-1])
    for rows, span, values in parts:
        columns = torch.arange(span.start, span.stop, device=whole.device)
        whole = whole.index_put((rows.to(whole.device)[:, None], columns[None]), values)
    return whole
