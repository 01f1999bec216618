"""Masks and positions of rows that hold several continuations of a text as a tree: each token sees its own past."""

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor


def tree_inputs(
    rows: Sequence[tuple[int, Sequence[int]]], past: int, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    """The attention mask and the position ids of rows, padded on the right.

    Args:
        rows: the number of tokens of each row, and for each of its last tokens the index of the token that it follows:
            one of these, or the one just before them. The earlier tokens follow each other.
        past: tokens that a cache holds, which all rows see.
        dtype: of the model's activations.
        device: where the tensors are to be.

    Returns:
        What is added to the attention scores, [rows, 1, tokens, past and present tokens], 0 for what a token sees; and
        the position ids, [rows, tokens].
    """
    width = max(length for length, _ in rows)
    seen = torch.ones(width, width, dtype=torch.bool).tril().repeat(len(rows), 1, 1)
    positions = torch.arange(width).repeat(len(rows), 1)
    for row, (length, follows) in enumerate(rows):
        start = length - len(follows)
        if follows:
            ancestors, depths = _tree(tuple(at - start for at in follows))
            seen[row, start:length, start:length] = ancestors
            positions[row, start:length] = depths + start
    hidden = torch.zeros(len(rows), 1, width, past + width, dtype=dtype, device=device)
    hidden[:, 0, :, past:].masked_fill_(~seen.to(device), torch.finfo(dtype).min)
    return hidden, (positions + past).to(device)


@lru_cache(maxsize=64)
def _tree(parents: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Which nodes each node sees, [nodes, nodes], and the depth of each, from 0; the parent of a root is -1."""
    seen = torch.eye(len(parents), dtype=torch.bool)
    depths: list[int] = []
    for node, parent in enumerate(parents):
        if parent >= 0:
            seen[node] |= seen[parent]
        depths.append(depths[parent] + 1 if parent >= 0 else 0)
    return seen, torch.tensor(depths)
