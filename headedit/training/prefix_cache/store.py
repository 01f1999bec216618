"""Hidden states of examples in host memory, by the examples' token ids."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from einops import rearrange, reduce
from torch import Tensor, nn

from headedit.hf.config import text_config

_USUAL = {"input_ids", "attention_mask", "labels", "num_items_in_batch", "return_dict"}


class HiddenStates:
    """The hidden states of examples, each [tokens, hidden].

    An entry depends on its example alone, not on the batch in which the example was.
    """

    def __init__(self) -> None:
        self._entries: dict[bytes, Tensor] = {}
        self._device = torch.device("cpu")

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def bytes(self) -> int:
        """Size of all entries in bytes."""
        return sum(entry.numel() * entry.element_size() for entry in self._entries.values())

    def missing(self, rows: Iterable[Tensor]) -> list[Tensor]:
        """The examples without an entry, each once."""
        found = {_key(row): row for row in rows}
        return [row for key, row in found.items() if key not in self._entries]

    def put(self, row: Tensor, hidden: Tensor) -> None:
        """Stores the hidden state of an example, [tokens, hidden], in host memory."""
        self._device = hidden.device
        self._entries[_key(row)] = hidden.detach().to("cpu", copy=True)

    def batch(self, rows: Iterable[Tensor], width: int) -> Tensor:
        """The hidden states of a batch, padded on the right, [batch, width, hidden], on the device they came from.

        Padding is never attended to, but layers compute with it. It is the state of the last token, which every layer
        can process; zeros some layers cannot.
        """
        entries = [self._entries[_key(row)] for row in rows]
        shape = (len(entries), width, entries[0].shape[-1])
        found = torch.empty(shape, dtype=entries[0].dtype, pin_memory=self._device.type == "cuda")
        for hidden, entry in zip(found, entries, strict=True):
            hidden[: len(entry)] = entry
            hidden[len(entry) :] = entry[-1]
        return found.to(self._device, non_blocking=True)


def unpadded_rows(inputs: Mapping[str, Any]) -> list[Tensor] | None:
    """The examples of a batch without their padding, each [tokens], in host memory.

    Args:
        inputs: the keyword arguments of a forward pass.

    Returns:
        None if the pass has other inputs too, if padding is not on the right alone, or if the pass may fill a
        key-value cache, which would then lack the lower layers.
    """
    given = {name: value for name, value in inputs.items() if value is not None and value is not False}
    ids, mask = given.get("input_ids"), given.get("attention_mask")
    if given.keys() - _USUAL or not (inputs.get("use_cache") is False or "labels" in given):
        return None
    if not isinstance(ids, Tensor) or not isinstance(mask, Tensor) or ids.dim() != 2 or mask.shape != ids.shape:
        return None
    ids, mask = ids.cpu(), mask.cpu()
    lengths = reduce(mask, "example token -> example", "sum")
    padded_right = torch.arange(ids.shape[1]) < rearrange(lengths, "example -> example 1")
    if not lengths.all() or not torch.equal(mask.bool(), padded_right):
        return None
    return [row[:length] for row, length in zip(ids, lengths.tolist(), strict=True)]


def position_limit(model: nn.Module) -> float:
    """The width from which on the longest example of a batch changes the position embeddings of the others."""
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
