"""Hidden states of examples in host memory, found by the examples' token ids."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from headedit.hf.config import text_config

_USUAL = {"input_ids", "attention_mask", "labels", "num_items_in_batch", "return_dict"}


class HiddenStates:
    """The hidden state of each example that was put in, [tokens, hidden].

    An entry depends on nothing but the example, so that it does not matter which batch it came in.
    """

    def __init__(self) -> None:
        self._entries: dict[bytes, Tensor] = {}
        self._device = torch.device("cpu")

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def bytes(self) -> int:
        """Bytes that they take."""
        return sum(entry.numel() * entry.element_size() for entry in self._entries.values())

    def missing(self, rows: Iterable[Tensor]) -> list[Tensor]:
        """The examples that are not there, each once."""
        found = {_key(row): row for row in rows}
        return [row for key, row in found.items() if key not in self._entries]

    def put(self, row: Tensor, hidden: Tensor) -> None:
        """Takes the hidden state of an example, [tokens, hidden], into host memory."""
        self._device = hidden.device
        self._entries[_key(row)] = hidden.detach().to("cpu", copy=True)

    def batch(self, rows: Iterable[Tensor], width: int) -> Tensor:
        """Those of a batch padded on the right, [batch, width, hidden], on the device that they came from.

        What stands at padding is never attended to, but it is computed with: it is the state of the last token, which
        every layer can take, as it cannot always take zeros.
        """
        entries = [self._entries[_key(row)] for row in rows]
        shape = (len(entries), width, entries[0].shape[-1])
        found = torch.empty(shape, dtype=entries[0].dtype, pin_memory=self._device.type == "cuda")
        for hidden, entry in zip(found, entries, strict=True):
            hidden[: len(entry)] = entry
            hidden[len(entry) :] = entry[-1]
        return found.to(self._device, non_blocking=True)


def rows_of(inputs: Mapping[str, Any]) -> list[Tensor] | None:
    """The examples of a batch without their padding, each [tokens], in host memory.

    Args:
        inputs: what a model is called with.

    Returns:
        None where they are not all that the model is given, where the padding is not on the right alone, or where a
        key-value cache may be asked for, which would have the layers above alone.
    """
    given = {name: value for name, value in inputs.items() if value is not None and value is not False}
    ids, mask = given.get("input_ids"), given.get("attention_mask")
    if given.keys() - _USUAL or not (inputs.get("use_cache") is False or "labels" in given):
        return None
    if not isinstance(ids, Tensor) or not isinstance(mask, Tensor) or ids.dim() != 2 or mask.shape != ids.shape:
        return None
    ids, mask = ids.cpu(), mask.cpu()
    lengths = mask.sum(1)
    if not lengths.all() or not torch.equal(mask.bool(), torch.arange(ids.shape[1]) < lengths[:, None]):
        return None
    return [row[:length] for row, length in zip(ids, lengths.tolist(), strict=True)]


def same_for_all(model: nn.Module) -> float:
    """The width of a batch from which on its longest example says what position embeddings the others have."""
    config = text_config(model)
    given = getattr(config, "rope_parameters", None) or {}
    rules = [rule for rule in (given, *given.values()) if isinstance(rule, Mapping)]
    return min(
        (
            rule.get("original_max_position_embeddings") or config.max_position_embeddings
            for rule in rules
            if rule.get("rope_type") == "longrope" or "dynamic" in str(rule.get("rope_type"))
        ),
        default=float("inf"),
    )


def _key(row: Tensor) -> bytes:
    return row.numpy().tobytes()
