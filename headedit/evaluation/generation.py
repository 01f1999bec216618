"""Batched greedy generation: left-padded, sorted by length, with attention masks."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from tqdm.auto import tqdm

from headedit.errors import HeadEditError
from headedit.specs.numbers import text_config
from headedit.text import prompt_ids


@torch.no_grad()
def generate(
    model: nn.Module,
    tokenizer: Any,
    prompts: Sequence[str],
    *,
    max_new_tokens: int = 16,
    batch_size: int = 32,
    progress: bool = True,
) -> list[str]:
    """The model's greedy continuation of each prompt, in the order given.

    The model is put in eval mode for the time of the call, so that gates are deterministic.

    Args:
        model: a causal LM, edited or not.
        tokenizer: its tokenizer.
        prompts: texts to continue.
        max_new_tokens: longest continuation, in tokens.
        batch_size: prompts a batch.
        progress: show a bar.

    Raises:
        HeadEditError: ``prompts`` is empty, or a prompt leaves no room in the model's context.
    """
    if not prompts:
        raise HeadEditError("There is nothing to generate from: the list of prompts is empty.")
    ids = [prompt_ids(tokenizer, prompt) for prompt in prompts]
    _check_room(model, ids, max_new_tokens)
    device = model.get_input_embeddings().weight.device  # type: ignore[operator]
    pad = next(i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id, 0) if i is not None)
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
    texts = [""] * len(ids)
    training = model.training
    model.eval()
    try:
        starts = range(0, len(order), batch_size)
        for start in tqdm(starts, desc="generating", unit="batch", disable=not progress, leave=False):
            rows = order[start : start + batch_size]
            width = max(len(ids[i]) for i in rows)
            padded = torch.tensor([[pad] * (width - len(ids[i])) + ids[i] for i in rows], device=device)
            mask = torch.tensor([[0] * (width - len(ids[i])) + [1] * len(ids[i]) for i in rows], device=device)
            out = model.generate(  # type: ignore[operator]
                input_ids=padded,
                attention_mask=mask,
                max_new_tokens=max_new_tokens,
                do_sample=False,
                num_beams=1,
                pad_token_id=pad,
            )
            decoded = tokenizer.batch_decode(out[:, width:], skip_special_tokens=True)
            for i, text in zip(rows, decoded, strict=True):
                texts[i] = text
    finally:
        model.train(training)
    return texts


def _check_room(model: nn.Module, ids: Sequence[Sequence[int]], max_new_tokens: int) -> None:
    room = getattr(text_config(model), "max_position_embeddings", None)
    longest = max(range(len(ids)), key=lambda i: len(ids[i]))
    if room is not None and len(ids[longest]) + max_new_tokens > room:
        raise HeadEditError(
            f"Prompt {longest + 1} has {len(ids[longest])} tokens; with {max_new_tokens} new ones it does not "
            f"fit the model's context of {room}. Shorten it or lower max_new_tokens."
        )
