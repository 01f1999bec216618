"""Greedy decoding of a batch that rows leave when they have ended, by the model's own ``generate`` in several calls.

A call ends once the rows that have ended in it cost more than another call, which continues from its cache with the
rows that are left. A cache that is not a plain one of keys and values cannot be cut to some of its rows; the batch is
then decoded in one call.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import StoppingCriteria, StoppingCriteriaList

from headedit.data.prompts import prompts_of
from headedit.errors import HeadEditError
from headedit.evaluation.answers.plain_cache import is_plain
from headedit.specs.registry import find_spec

_FIRST = 4
"""Tokens of the first call, after which it is known whether rows can leave."""
_WASTE = 0.125
"""Passes of the whole batch that may be spent on rows that have ended, before the others go on without them."""
_CLOSE, _EVERY_NTH = 32, 4
"""Whether rows have ended is checked after each of the first 32 tokens, then after every fourth."""
_OF_ONE_CALL = (
    "begin_suppress_tokens",
    "exponential_decay_length_penalty",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "guidance_scale",
    "max_time",
    "min_new_tokens",
    "prompt_lookup_num_tokens",
    "token_healing",
    "watermarking_config",
)
"""Settings of a model's generation that act by where a call of ``generate`` begins or ends."""


class GreedyDecoder:
    """Decodes batches of one model.

    Args:
        model: a causal LM in eval mode.
        stops: the tokens that end a text.
        settings: of ``generate``.

    Fields:
        in_parts: whether rows can leave a batch; None before the first batch.
    """

    def __init__(self, model: nn.Module, stops: list[int], settings: dict[str, Any]) -> None:
        self._model, self._stops = model, set(stops)
        self._settings = {**settings, "eos_token_id": stops or None}
        self.in_parts: bool | None = None if _may_be_parted(model) else False

    def decode(
        self,
        ids: Tensor,
        mask: Tensor,
        max_new_tokens: int,
        ended: Callable[[int, list[int]], bool],
        cache: Any = None,
    ) -> list[list[int]]:
        """The new tokens of each row, with the one that ended it, if any, and perhaps padding after it.

        Args:
            ids: prompts, padded on the left, [batch, tokens].
            mask: 1 for their tokens and 0 for padding, [batch, tokens].
            max_new_tokens: longest continuation, in tokens.
            ended: whether a row, by its number, needs no more than these new tokens; asked from time to time.
            cache: of the first tokens of all rows, before any padding; None to run them.
        """
        width = ids.shape[1]
        found: list[list[int]] = [[] for _ in ids]
        rows, prompts = list(range(len(ids))), mask.sum(1).tolist()
        given: dict[str, Any] = {} if cache is None else {"past_key_values": cache}
        made = 0
        while made < max_new_tokens:
            if self.in_parts is not False:
                has_ended = partial(self._has_ended, ended, rows)
                given["stopping_criteria"] = StoppingCriteriaList([_EndOfPart(width, has_ended)])
            whole = self.in_parts is False  # later calls are given new tokens too
            with nullcontext() if whole else prompts_of([prompts[row] for row in rows]):
                out = self._model.generate(  # type: ignore[operator]
                    input_ids=ids,
                    attention_mask=mask,
                    max_new_tokens=min(_FIRST, max_new_tokens) if self.in_parts is None else max_new_tokens - made,
                    return_dict_in_generate=True,
                    **given,
                    **self._settings,
                )
            sequences = getattr(out, "sequences", out)  # a model with a generate of its own may give these alone
            new = sequences[:, width:].tolist()
            made = len(new[0])
            for row, tokens in zip(rows, new, strict=True):
                found[row] = tokens
            left = [k for k, tokens in enumerate(new) if not self._has_ended(ended, rows, k, tokens)]
            if not left or made >= max_new_tokens:
                break
            cache = getattr(out, "past_key_values", None)
            if not _can_be_cut(cache, sequences.shape[1] - 1):
                self.in_parts = False
                more = self.decode(ids[left][:, :width], mask[left][:, :width], max_new_tokens, ended)
                for k, tokens in zip(left, more, strict=True):
                    found[rows[k]] = tokens
                break
            self.in_parts = True
            kept = torch.tensor(left, device=ids.device)
            ids = sequences[kept]
            mask = torch.cat([mask[kept], mask.new_ones(len(left), ids.shape[1] - mask.shape[1])], 1)
            if len(left) < len(rows):
                cache.batch_select_indices(kept)
            given, rows = {"past_key_values": cache}, [rows[k] for k in left]
        return found

    def _has_ended(
        self, ended: Callable[[int, list[int]], bool], rows: Sequence[int], place: int, tokens: list[int]
    ) -> bool:
        """Whether the row at a place of the batch has ended with these new tokens."""
        return bool(self._stops & set(tokens)) or ended(rows[place], tokens)


class _EndOfPart(StoppingCriteria):  # type: ignore[misc]
    """Ends a call of ``generate`` once rows that have ended have cost as much as another call.

    Args:
        width: tokens of the prompts.
        has_ended: whether a row of the batch has ended with these new tokens.
    """

    def __init__(self, width: int, has_ended: Callable[[int, list[int]], bool]) -> None:
        self._width, self._has_ended = width, has_ended
        self._ended: set[int] = set()
        self._wasted = 0.0

    def __call__(self, input_ids: Tensor, scores: Any, **options: Any) -> Tensor:
        """Whether each row is to stop, [rows]: all of them or none."""
        made = input_ids.shape[1] - self._width
        if made <= _CLOSE or made % _EVERY_NTH == 0:
            new = input_ids[:, self._width :].tolist()
            self._ended |= {k for k, row in enumerate(new) if k not in self._ended and self._has_ended(k, row)}
        self._wasted += len(self._ended) / len(input_ids)
        stop = len(self._ended) == len(input_ids) or self._wasted > _WASTE
        return torch.full((len(input_ids),), stop, dtype=torch.bool, device=input_ids.device)


def _may_be_parted(model: nn.Module) -> bool:
    """Whether several calls give the tokens of one; of types without a spec it is not known."""
    config = getattr(model, "generation_config", None)
    found = {name: getattr(config, name, None) for name in _OF_ONE_CALL}
    if found.pop("guidance_scale") not in (None, 1) or any(v is not None and v is not False for v in found.values()):
        return False
    try:
        find_spec(model)
    except HeadEditError:
        return False
    return True


def _can_be_cut(cache: Any, tokens: int) -> bool:
    """Whether rows of a cache can be chosen, and it holds as many tokens as it should."""
    return is_plain(cache) and cache.get_seq_length() == tokens
