"""The random numbers of a pass, by which gates are drawn and heads left out, for all sites at once."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from headedit.hf.sharding import from_first


class Draws(Protocol):
    """The edit of a site, as far as it draws."""

    heads: int
    dropout: float

    @property
    def vectors(self) -> Any:
        """The names of its vectors."""
        ...

    @property
    def gates(self) -> Any:
        """The names of its gates."""
        ...

    @property
    def draws(self) -> bool:
        """Whether it draws in a pass."""
        ...


D = TypeVar("D", bound=Draws)


def gate_noise(edits: Sequence[D], values: Sequence[Mapping[str, Tensor]], group: Any = None) -> dict[D, Tensor]:
    """Numbers from [0, 1) by which the gates of sites are drawn, and the heads that are left out.

    They are drawn at once; on a CPU they are those that the sites would draw one after the other: per site that draws
    one for each gate, and with dropout one for each head, [gates + heads]. All processes of a group get the same.
    """
    counts: dict[tuple[torch.device, torch.dtype], dict[D, int]] = {}
    for edit, tensors in zip(edits, values, strict=True):
        if not edit.draws:
            continue
        drawn_per_head = len(edit.gates) + (edit.dropout > 0)
        if drawn_per_head:
            like = tensors[next(iter(edit.gates or edit.vectors))]
            counts.setdefault((like.device, like.dtype), {})[edit] = drawn_per_head * edit.heads
    drawn: dict[D, Tensor] = {}
    for (device, dtype), sizes in counts.items():
        numbers = torch.rand(sum(sizes.values()), device=device, dtype=dtype)
        if group is not None:
            numbers = from_first(numbers, group)
        drawn |= zip(sizes, torch.split(numbers, list(sizes.values())), strict=True)
    return drawn
