"""Rows of a forward pass, of which log-probabilities of a few tokens at a few positions are read.

Logits are made for those positions alone: what the projection to the vocabulary is given is cut to them, so that
everything that the model does to its logits acts as always.
"""

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from headedit.data.batches import token_embeddings
from headedit.data.prompts import prompts_of
from headedit.errors import HeadEditError
from headedit.evaluation.answers.tree_masks import tree_inputs
from headedit.specs.registry import find_spec


@dataclass(frozen=True)
class Row:
    """One row of a forward pass.

    Fields:
        tokens: its token ids.
        reads: (position, token, option) of each log-probability that is read: of ``token`` after the one at
            ``position``, for an option.
        prompt: how many tokens its prompt has, in a cache too.
        follows: the index of the token that each of the last tokens follows, where several continue one; a token before
            these follows the one before it.
    """

    tokens: list[int]
    reads: list[tuple[int, int, int]]
    prompt: int
    follows: Sequence[int] = ()


class RowReader:
    """Runs rows through a model and reads log-probabilities from them.

    Fields:
        model: a causal LM in eval mode.
        pad: the token that fills rows up.
        takes: names of the arguments of its forward pass.
    """

    def __init__(self, model: nn.Module, pad: int) -> None:
        self.model, self.pad = model, pad
        self.takes = set(inspect.signature(model.forward).parameters)
        self._head = _known_head(model)

    def read(
        self, rows: Sequence[Row], *, left: bool = False, past: Tensor | None = None, **inputs: Any
    ) -> tuple[list[list[float]], Tensor, Any]:
        """Runs rows once.

        Args:
            rows: the rows; those of which several tokens follow one need a model that takes a mask of four dimensions.
            left: pad them on the left instead of on the right.
            past: the mask of tokens that a cache in ``inputs`` holds, [rows, tokens].
            inputs: more for the model.

        Returns:
            The log-probability of each read of each row; the attention mask, [rows, past and present tokens]; and what
            the model gave.
        """
        table = token_embeddings(self.model)
        device = table.device
        width = max(len(row.tokens) for row in rows)
        gaps = [width - len(row.tokens) for row in rows]
        shifts = gaps if left else [0] * len(rows)
        fill, seen = [self.pad], [1]
        ids = torch.tensor([_padded(row.tokens, fill * gap, left) for row, gap in zip(rows, gaps, strict=True)])
        mask = torch.tensor([_padded(seen * len(r.tokens), [0] * gap, left) for r, gap in zip(rows, gaps, strict=True)])
        ids, mask = ids.to(device), mask.to(device)
        mask = mask if past is None else torch.cat([past, mask], 1)
        if "position_ids" in self.takes and not bool(mask[:, 0].all()):
            inputs["position_ids"] = (mask.cumsum(-1) - 1).clamp(min=0)[:, -width:]
        attention = mask
        if any(row.follows for row in rows):
            shapes = [(len(row.tokens), row.follows) for row in rows]
            attention, inputs["position_ids"] = tree_inputs(shapes, mask.shape[1] - width, table.dtype, device)
        wanted = [sorted({at + shift for at, _, _ in row.reads}) for row, shift in zip(rows, shifts, strict=True)]
        most = max(map(len, wanted))
        positions = torch.tensor([at + [at[-1]] * (most - len(at)) for at in wanted], device=device)
        with prompts_of([row.prompt for row in rows]):
            logits, out = self._logits_at(positions, input_ids=ids, attention_mask=attention, **inputs)
        found = [
            (i, wanted[i].index(at + shifts[i]), token) for i, row in enumerate(rows) for at, token, _ in row.reads
        ]
        row_of, place, token = torch.tensor(found, device=logits.device).unbind(1)
        logits = logits.float()  # [rows, positions, vocabulary]; float32 before the sum over the vocabulary
        values = (logits[row_of, place, token] - logits.logsumexp(-1)[row_of, place]).tolist()
        coming = iter(values)
        return [[next(coming) for _ in row.reads] for row in rows], mask, out

    def _logits_at(self, positions: Tensor, **inputs: Any) -> tuple[Tensor, Any]:
        """The logits at positions, [rows, positions], of a pass, and all that it gave."""
        width = inputs["input_ids"].shape[1]
        if self._head is not None:
            with _cut(self._head, positions, width) as calls:
                out = self.model(**inputs)
            if calls == [True] and out.logits.shape[:2] == positions.shape:
                return out.logits, out
            self._head = None
            if "past_key_values" in inputs:
                raise RuntimeError("The head was called differently after a cache than without one.")
        if "logits_to_keep" in self.takes:
            inputs["logits_to_keep"] = width - int(positions.min())
        out = self.model(**inputs)
        at = (positions - (width - out.logits.shape[1])).to(out.logits.device)
        return out.logits[torch.arange(len(at), device=at.device)[:, None], at], out


@contextmanager
def _cut(head: nn.Module, positions: Tensor, width: int) -> Iterator[list[bool]]:
    """A context in which the head is given the states at ``positions`` alone; notes each call, and whether it was."""
    calls: list[bool] = []

    def cut(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        states: Any = args[0] if args else None
        fits = isinstance(states, Tensor) and states.dim() == 3 and states.shape[:2] == (len(positions), width)
        calls.append(fits)
        if not fits:
            return None
        at = positions.to(states.device)
        return (states[torch.arange(len(at), device=at.device)[:, None], at], *args[1:])

    handle = head.register_forward_pre_hook(cut)
    try:
        yield calls
    finally:
        handle.remove()


def _known_head(model: nn.Module) -> nn.Module | None:
    """The projection to the vocabulary of a model of a type that has a spec; None of another."""
    try:
        find_spec(model)
        head = model.get_output_embeddings()  # type: ignore[operator]
    except (HeadEditError, AttributeError, NotImplementedError):
        return None
    return head if isinstance(head, nn.Module) else None


def _padded(values: list[int], filler: list[int], left: bool) -> list[int]:
    return filler + values if left else values + filler
