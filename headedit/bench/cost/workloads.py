"""The workloads that are measured: a training step, a forward pass, prefill and decoding."""

import copy
from collections.abc import Callable

import torch
from torch import Tensor
from transformers import DynamicCache

from headedit.bench.cost.methods import Prepared

DECODED = 16
"""The number of tokens that a measured run decodes."""

Run = Callable[[], object]


def training_step(prepared: Prepared, ids: Tensor) -> Run:
    """A training step: forward, backward, and fused AdamW over the trained parameters."""
    optimizer = torch.optim.AdamW(prepared.trained, lr=1e-4, fused=True)

    def step() -> None:
        _backward(prepared, ids)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def loss_and_gradients(prepared: Prepared, ids: Tensor) -> Run:
    """A training step without the optimiser; the gradients are discarded."""

    def run() -> None:
        _backward(prepared, ids)
        for parameter in prepared.trained:
            parameter.grad = None

    return run


def _backward(prepared: Prepared, ids: Tensor) -> None:
    _set_mode(prepared, training=True)
    loss = prepared.model(input_ids=ids, labels=ids, use_cache=False).loss
    (loss if prepared.penalty is None else loss + prepared.penalty()).backward()


def forward(prepared: Prepared, ids: Tensor) -> Run:
    """A forward pass over the batch in eval mode, with the logits of all tokens."""

    def run() -> None:
        _set_mode(prepared, training=False)
        with torch.no_grad():
            prepared.model(input_ids=ids, use_cache=False)

    return run


def prefill(prepared: Prepared, ids: Tensor) -> Callable[[], DynamicCache]:
    """A forward pass that fills a cache, with the logits of only the last token."""

    def run() -> DynamicCache:
        _set_mode(prepared, training=False)
        with torch.no_grad():
            out = prepared.model(input_ids=ids, use_cache=True, logits_to_keep=1)
        cache: DynamicCache = out.past_key_values
        return cache

    return run


def decode(prepared: Prepared, ids: Tensor) -> Callable[[], Run]:
    """Decoding token by token; the prefill runs once, here, and each run continues from a copy of its cache."""
    filled = prefill(prepared, ids)()
    token = ids[:, -1:]

    def ready() -> Run:
        cache = copy.deepcopy(filled)

        def run() -> None:
            with torch.no_grad():
                for _ in range(DECODED):
                    prepared.model(input_ids=token, past_key_values=cache, use_cache=True)

        return run

    return ready


def _set_mode(prepared: Prepared, *, training: bool) -> None:
    if prepared.model.training != training:  # walking over all modules would be timed too
        prepared.model.train(training)
