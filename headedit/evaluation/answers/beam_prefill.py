"""Runs the prompt of a beam search once for all beams instead of once per beam.

``generate`` repeats each prompt for every beam before the first forward pass. Where the cache is a plain one of keys
and values, it is filled with one row per prompt and then repeated, which gives the same cache for less work.
"""

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from headedit.data.prompts import prompts_of
from headedit.evaluation.answers.plain_cache import is_plain


@torch.no_grad()
def shared_prefill(model: nn.Module, ids: Tensor, mask: Tensor, beams: int) -> dict[str, Any]:
    """Fills the cache with all prompt tokens but the last, for ``generate``; empty if the model keeps another cache.

    Args:
        model: a causal LM.
        ids: prompts, padded on the left, [batch, tokens].
        mask: 1 for their tokens and 0 for padding, [batch, tokens].
        beams: rows that each prompt becomes.
    """
    takes = inspect.signature(model.forward).parameters
    if beams == 1 or ids.shape[1] == 1 or "logits_to_keep" not in takes:
        return {}
    positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, :-1]
    given = {"position_ids": positions} if "position_ids" in takes else {}
    with prompts_of(mask.sum(1).tolist()):
        out = model(input_ids=ids[:, :-1], attention_mask=mask[:, :-1], use_cache=True, logits_to_keep=1, **given)
    cache: Any = getattr(out, "past_key_values", None)
    if not is_plain(cache):
        return {}
    cache.batch_repeat_interleave(beams)
    return {"past_key_values": cache}
