"""Prefill and decoding with a static cache, as they are or compiled with CUDA graphs."""

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import StaticCache

from headedit.bench.cost.methods import Prepared, bare, edited
from headedit.bench.cost.shapes import random_ids
from headedit.bench.cost.timing import alternate
from headedit.bench.cost.workloads import DECODED, Run
from headedit.bench.results import Row
from headedit.hf.config import text_config

Work = Literal["prefill", "decode"]


def with_static_cache(
    model: nn.Module, work: Work, batch: int, tokens: int, *, rounds: int, compiled: bool
) -> list[Row]:
    """Times of prefill, or of decoding after it, with a static cache, edited against bare.

    Args:
        model: its weights are shared by both.
        work: ``prefill`` of the prompt, or ``decode``, 16 tokens after it.
        batch, tokens: of the prompt.
        rounds: timed rounds.
        compiled: by torch.compile, with CUDA graphs on a GPU (``mode="reduce-overhead"``).

    Returns:
        Rows as those of ``measure_cost``.
    """
    device = next(model.parameters()).device
    ids = random_ids(text_config(model).vocab_size, batch, tokens, device)
    if compiled:
        torch.compiler.reset()
    make = _prefill if work == "prefill" else _decode
    variants = {name: make(method(model), ids, compiled) for name, method in (("bare", bare), ("edited", edited))}
    processed = batch * (tokens if work == "prefill" else DECODED)
    rows: list[Row] = []
    for name, timing in alternate(variants, rounds, device).items():
        low, high = timing.quartiles
        of = {"value": timing.median, "unit": "ms", "against": "bare", "ratio": timing.ratio, "low": low, "high": high}
        rows.append(
            {"workload": f"{work}, static cache{', compiled' if compiled else ''}", "method": name, **of}
            | {"runs": len(timing.milliseconds), "tokens_per_second": 1000 * processed / timing.median}
            | {"at_most": 1.02 if name == "edited" else None}
        )
    return rows


def _prefill(prepared: Prepared, ids: Tensor, compiled: bool) -> Callable[[], Run]:
    model = prepared.model.eval()
    called, cache = _called(model, compiled), _filled(model, ids)

    def ready() -> Run:
        _set_length(cache, 0)
        return run

    @torch.no_grad()
    def run() -> None:
        called(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)

    return ready


def _decode(prepared: Prepared, ids: Tensor, compiled: bool) -> Callable[[], Run]:
    model = prepared.model.eval()
    called, cache = _called(model, compiled), _filled(model, ids)
    token = ids[:, -1:].clone()

    def ready() -> Run:
        _set_length(cache, ids.shape[1])
        return run

    @torch.no_grad()
    def run() -> None:
        for _ in range(DECODED):
            called(input_ids=token, past_key_values=cache, use_cache=True)

    return ready


@torch.no_grad()
def _filled(model: Any, ids: Tensor) -> StaticCache:
    """A cache that holds a prompt, with room for the tokens that are decoded after it."""
    cache = StaticCache(config=model.config, max_cache_len=ids.shape[1] + DECODED)
    model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
    return cache


def _set_length(cache: StaticCache, tokens: int) -> None:
    for layer in cache.layers:
        layer.cumulative_length.fill_(tokens)


def _called(model: Any, compiled: bool) -> Callable[..., object]:
    """The model, or a compiled one with graphs of its own.

    The compiler keeps graphs per code object and does not guard on hooks: a model whose weights are those of another
    would run the graph of that one, without its own hooks.
    """
    if not compiled:
        return model  # type: ignore[no-any-return]

    def call(**inputs: Any) -> object:
        return model(**inputs)

    call.__code__ = call.__code__.replace()  # another object, though equal
    found: Callable[..., object] = torch.compile(call, mode="reduce-overhead")

    def marked(**inputs: Any) -> object:
        torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        return found(**inputs)

    return marked
