"""Runs the tokens that all prompts begin with once, for greedy generation: each row goes on from a copy of their cache.

What a batch is padded with stands between the beginning and the rest of a prompt, masked. One prompt is compared with a
pass of all of it before others follow.
"""

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from headedit.data.batches import token_embeddings
from headedit.data.prompts import prompts_of
from headedit.evaluation.answers.common_prefix import beginning
from headedit.evaluation.answers.plain_cache import Checked, agree, is_plain, selected

_FEWEST_TOKENS = 16
_FEWEST_PROMPTS = 8
_COMPARED = 8
"""The likeliest next tokens of a prompt, whose log-probabilities are compared."""


class PromptStart(Checked):
    """The common beginning of prompts.

    Args:
        model: a causal LM in eval mode.
        prompts: token ids of all prompts.
        possible: whether the model takes padding on the left and its generation can be parted.

    Fields:
        tokens: how many tokens it has.
    """

    def __init__(self, model: nn.Module, prompts: Sequence[list[int]], *, possible: bool = True) -> None:
        self._model = model
        takes = {"past_key_values", "position_ids"} <= set(inspect.signature(model.forward).parameters)
        self._ids = beginning(prompts) if takes else []
        self.tokens = len(self._ids)
        self._cache: Any = None
        super().__init__(possible and len(prompts) >= _FEWEST_PROMPTS and self.tokens >= _FEWEST_TOKENS)

    def cache(self, prompts: Sequence[list[int]]) -> Any:
        """A cache of the beginning, a row for each prompt of a batch; None where the model cannot go on from it."""
        return self.tried(lambda: self._copies(len(prompts)), lambda _: self._right(prompts))

    def _copies(self, rows: int) -> Any:
        device = token_embeddings(self._model).device
        if self._cache is None:
            with prompts_of([self.tokens + 1]):  # every prompt goes on
                found = getattr(self._run(self._ids, []), "past_key_values", None)
            if not is_plain(found):
                return None
            self._cache = found
        return selected(self._cache, torch.zeros(rows, dtype=torch.long, device=device))

    def _right(self, prompts: Sequence[list[int]]) -> bool:
        """Whether the shortest prompt, padded like the longest, goes on as it does after a pass of all of it."""
        shortest, longest = min(prompts, key=len), max(map(len, prompts))
        rest = [None] * (longest - len(shortest)) + shortest[self.tokens :]
        with prompts_of([len(shortest)]):
            found = self._run(rest, self._ids, past_key_values=self._copies(1)).logits[0, -1]
            expected = self._run(shortest, []).logits[0, -1]
        likeliest = expected.topk(min(_COMPARED, len(expected))).indices
        pairs = [logits.float().log_softmax(-1)[likeliest].tolist() for logits in (found, expected)]
        return all(agree(a, b, expected.dtype) for a, b in zip(*pairs, strict=True))

    def _run(self, tokens: Sequence[int | None], past: Sequence[int], **inputs: Any) -> Any:
        """A pass of one row after those of a cache; None stands for padding."""
        device = token_embeddings(self._model).device
        mask = torch.tensor([[1] * len(past) + [int(token is not None) for token in tokens]], device=device)
        positions: Tensor = (mask.cumsum(-1) - 1)[:, len(past) :]
        ids = torch.tensor([[0 if token is None else token for token in tokens]], device=device)
        return self._model(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=True, **inputs)
