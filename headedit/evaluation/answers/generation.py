"""Batched generation, greedy or by beam search: left-padded, sorted by length, with attention masks and the cache."""

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from headedit.data import prompt_ids
from headedit.data.batches import token_embeddings
from headedit.data.rows import Vocabulary
from headedit.data.tokens import TokenisedPrompt
from headedit.errors import HeadEditError
from headedit.evaluation.answers.beam_prefill import shared_prefill
from headedit.evaluation.answers.greedy import GreedyDecoder
from headedit.evaluation.answers.padding import batches_of, report_equal_lengths, takes_padding
from headedit.evaluation.answers.prompt_start import PromptStart
from headedit.hf.config import context_length
from headedit.hf.modes import evaluating
from headedit.io.bars import tqdm

logger = logging.getLogger(__name__)

_PLAIN = {
    "do_sample": False,
    "use_cache": True,
    "early_stopping": False,
    "length_penalty": 1.0,
    "min_length": 0,
    "no_repeat_ngram_size": 0,
    "num_return_sequences": 1,
    "repetition_penalty": 1.0,
}
"""Decoding as published: a model's own settings, such as a penalty that also counts padding, are off."""


@dataclass(frozen=True)
class Continuation:
    """What the model generated after a prompt.

    Fields:
        text: without special tokens.
        tokens: number of tokens, with the end-of-text.
    """

    text: str
    tokens: int


def generate(model: nn.Module, tokenizer: Any, prompts: Sequence[str], **options: Any) -> list[str]:
    """Generates the texts of ``continuations`` in the order of the prompts, with the same options and errors."""
    texts = [""] * len(prompts)
    for batch in continuations(model, tokenizer, prompts, **options):
        for i, continuation in batch:
            texts[i] = continuation.text
    return texts


@torch.no_grad()
def continuations(
    model: nn.Module,
    tokenizer: Any,
    prompts: Sequence[str],
    *,
    max_new_tokens: int = 16,
    num_beams: int = 1,
    batch_size: int = 32,
    first_line: bool = False,
    names: Sequence[str] | None = None,
    share: tuple[int, int] = (0, 1),
    progress: bool = True,
    describe: str = "generating",
) -> Iterator[list[tuple[int, Continuation]]]:
    """Generates the continuation of each prompt, batch by batch, the longest prompts first.

    The model is in eval mode meanwhile, so that gates are deterministic.

    Args:
        model: a causal LM, edited or not.
        tokenizer: its tokenizer.
        prompts: texts to continue; after a ``TokenisedPrompt`` the text ends before the tokens of its ending.
        max_new_tokens: longest continuation, in tokens.
        num_beams: beams of a beam search; 1 for greedy decoding.
        batch_size: prompts per batch of the longest; shorter ones make larger batches of as many tokens.
        first_line: the first line alone is needed, so a row of a greedy batch may end after it.
        names: what messages call each prompt; by default its number.
        share: (k, n) for batches k, k + n, … alone.
        progress: show a bar.
        describe: what the bar says.

    Yields:
        For every batch the (index of the prompt, continuation) of its prompts.

    Raises:
        HeadEditError: ``prompts`` is empty, a prompt leaves no room in the model's context, or it has a token id
            that the model does not have.
    """
    if not prompts:
        raise HeadEditError("There is nothing to generate from: the list of prompts is empty.")
    ids = [prompt_ids(tokenizer, prompt) for prompt in prompts]
    names = [f"Prompt {i + 1}" for i in range(len(ids))] if names is None else names
    for row, name in zip(ids, names, strict=True):
        check_room(model, row, max_new_tokens, name)
    device = token_embeddings(model).device
    pad, stops = padding(tokenizer, model), _stops(model, tokenizer)
    settings = {"pad_token_id": pad, "num_beams": num_beams, **_PLAIN}
    greedy = GreedyDecoder(model, stops, settings)
    with evaluating(model):
        equal = not takes_padding(model, "left")
        parted = num_beams == 1 and greedy.in_parts is not False
        start = PromptStart(model, ids, possible=parted and not equal)
        for rows in by_length(
            [len(row) for row in ids], batch_size, progress, describe, share, equal_for=model if equal else None
        ):
            width = max(len(ids[i]) for i in rows)
            cache = start.cache([ids[i] for i in rows])
            before = 0 if cache is None else start.tokens
            padded = torch.tensor([_filled(ids[i], pad, width, before) for i in rows], device=device)
            mask = torch.tensor([_filled([1] * len(ids[i]), 0, width, before) for i in rows], device=device)
            if num_beams == 1:

                def ended(row: int, new: list[int], rows: list[int] = rows) -> bool:
                    return first_line and _line_is_whole(tokenizer, new, _ending(prompts[rows[row]]))

                new = greedy.decode(padded, mask, max_new_tokens, ended, cache)
            else:
                out: Tensor = model.generate(  # type: ignore[operator]
                    input_ids=padded,
                    attention_mask=mask,
                    max_new_tokens=max_new_tokens,
                    eos_token_id=stops or None,
                    **shared_prefill(model, padded, mask, num_beams),
                    **settings,
                )
                new = out[:, width:].tolist()
            answers = [_before(_ending(prompts[i]), ids) for i, ids in zip(rows, new, strict=True)]
            texts = tokenizer.batch_decode(answers, skip_special_tokens=True)
            lengths = [_length(row, stops) for row in new]
            found = zip(rows, map(Continuation, texts, lengths), strict=True)
            yield list(found)


def _filled(values: list[int], filler: int, width: int, before: int) -> list[int]:
    """Values filled up to a width, after the first ``before`` of them."""
    return values[:before] + [filler] * (width - len(values)) + values[before:]


def by_length(
    lengths: Sequence[int],
    batch_size: int,
    progress: bool,
    describe: str,
    share: tuple[int, int] = (0, 1),
    equal_for: nn.Module | None = None,
) -> Iterator[list[int]]:
    """Yields indices in batches of similar length, the longest first, so that too little memory shows at once.

    Batches of shorter sequences have more of them: as many as have the tokens of ``batch_size`` of the longest.

    Args:
        lengths: length of each sequence, in tokens.
        batch_size: sequences per batch of the longest.
        progress: show a bar that counts sequences.
        describe: what the bar says.
        share: (k, n) for batches k, k + n, … alone.
        equal_for: a model that cannot take padding on the left, so that only equal lengths share a batch; this is
            reported.
    """
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    tokens = batch_size * max(lengths)
    found = list(batches_of(order, lengths, batch_size, equal=equal_for is not None, tokens=tokens))
    if equal_for is not None and len(found) > math.ceil(len(order) / batch_size):
        report_equal_lengths(equal_for, "left", len(order), len(found))
    first, processes = share
    if first == 0 and len(found) < processes:
        logger.warning(
            "%s: %d batches for %d processes, so some have nothing to do; a lower batch_size makes more batches.",
            describe,
            len(found),
            processes,
        )
    own = found[first::processes]
    with tqdm(total=sum(map(len, own)), desc=describe, unit="example", disable=not progress, leave=False) as bar:
        for rows in own:
            yield rows
            bar.update(len(rows))


def check_room(model: nn.Module, ids: list[int], more: int, name: str) -> None:
    """Raises a ``HeadEditError`` for a prompt that a model cannot continue.

    It has no tokens, or with ``more`` does not fit the context; or the model does not have one of them.
    """
    longest, tokens = context_length(model), len(ids)
    if not tokens:
        raise HeadEditError(f"{name} is empty, so there is nothing to continue.")
    if longest is not None and tokens + more > longest:
        raise HeadEditError(
            f"{name} has {tokens} tokens; with {more} new ones it does not fit the model's context of {longest}. "
            "Shorten it or lower max_new_tokens."
        )
    Vocabulary.of(model).check_ids(ids, name)


def padding(tokenizer: Any, model: nn.Module) -> int:
    """The token that pads a batch; it is masked, so any token that the model has will do."""
    return next(i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id, 0) if Vocabulary.of(model).has(i))


def _stops(model: nn.Module, tokenizer: Any) -> list[int]:
    """The tokens that end a text: those of the model, and the one that training teaches."""
    found = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    listed = found if isinstance(found, list) else [found]
    return sorted({i for i in (*listed, tokenizer.eos_token_id) if i is not None})


def _ending(prompt: str) -> list[int]:
    return prompt.ending if isinstance(prompt, TokenisedPrompt) else []


def _before(ending: Sequence[int], tokens: list[int]) -> list[int]:
    """The tokens before the first place where all of ``ending`` follows; all of them if it does not, or is empty."""
    width = len(ending)
    places = range(len(tokens) - width + 1) if width else ()
    return next((tokens[:i] for i in places if tokens[i : i + width] == ending), tokens)


def _line_is_whole(tokenizer: Any, tokens: list[int], ending: Sequence[int]) -> bool:
    """Whether no more tokens can change the first line of a text, nor where its ending is if that is in the line."""
    text = tokenizer.decode(tokens[: len(tokens) - len(ending)], skip_special_tokens=True).lstrip()
    return len(f"{text}.".splitlines()) > 1


def _length(tokens: Sequence[int], stops: Sequence[int]) -> int:
    return next((i + 1 for i, token in enumerate(tokens) if token in stops), len(tokens))
