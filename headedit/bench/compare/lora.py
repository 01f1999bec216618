"""LoRA (Hu et al., ICLR 2022, arXiv 2106.09685) by peft, trained by plain ``transformers.Trainer``.

It is treated generously: three learning rates are tried, and the one with the best score on the test examples counts.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn
from transformers import set_seed

from headedit.bench.compare.peers.adapters import add_lora
from headedit.bench.compare.peers.training import Budget, train_peer
from headedit.data.batches import Encoded
from headedit.data.encoding import encode
from headedit.errors import HeadEditError
from headedit.io import strict


@dataclass(frozen=True, kw_only=True)
class LoraSettings:
    """The usual choices for LoRA.

    Fields:
        r: rank.
        lora_alpha: α; the update is multiplied by α / r.
        learning_rates: tried one by one, each on a fresh model.
        epochs: passes over the examples.
        min_steps: the least number of optimiser steps; more passes are made to reach it.
        batch_size: examples per step; all of them where there are fewer.
        warmup: share of the steps over which the rate rises, before its cosine.
    """

    r: int = 8
    lora_alpha: int = 16
    learning_rates: list[float] = field(default_factory=lambda: [1e-3, 3e-3, 1e-2])
    epochs: int = 20
    min_steps: int = 300
    batch_size: int = 8
    warmup: float = 0.05

    def __post_init__(self) -> None:
        strict.check(self)
        if not self.learning_rates:
            raise HeadEditError("learning_rates: the list is empty, expected at least one.")
        for name in ("r", "epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise HeadEditError(f"{name}: found {getattr(self, name)}, expected 1 or more.")


@dataclass(frozen=True, kw_only=True)
class LoraFit:
    """The best of the runs.

    Fields:
        model: with the adapter, in eval mode.
        score: of the best run, on the test examples.
        learning_rate: of the best run.
        parameters: number of trainable parameters.
        seconds: of the best run.
        tried: learning rate, score and seconds of every run.
    """

    model: nn.Module
    score: float
    learning_rate: float
    parameters: int
    seconds: float
    tried: list[dict[str, float]]


def best_lora(
    fresh: Callable[[], nn.Module],
    train: Iterable[Any],
    score: Callable[[nn.Module], float],
    *,
    tokenizer: Any = None,
    seed: int = 0,
    settings: LoraSettings | None = None,
) -> LoraFit:
    """Trains with each learning rate, and keeps the run that scores best on the test examples.

    A user has no test examples to choose by, so this flatters LoRA.

    Args:
        fresh: makes the model without the adapter; called once per learning rate.
        train: examples, in any form that ``fit`` takes.
        score: of a trained model on the test examples; higher is better.
        tokenizer: for examples that are texts.
        seed: of the adapter's start and the order of the examples.
        settings: by default r 8 with three learning rates.

    Raises:
        HeadEditError: peft is not installed, the set is empty, or the model has not the modules to adapt.
    """
    settings = LoraSettings() if settings is None else settings
    rows = encode(train, tokenizer, max_length=None, name="training", progress=False)
    pad = getattr(tokenizer, "pad_token_id", None)
    best: tuple[float, float, float, nn.Module] | None = None
    tried = []
    for rate in settings.learning_rates:
        started = time.perf_counter()
        model = train_lora(fresh(), rows, settings, rate, seed, 0 if pad is None else pad)
        seconds = time.perf_counter() - started
        scored = score(model)
        tried.append({"learning_rate": rate, "score": scored, "seconds": seconds})
        if best is None or scored > best[0]:
            best = (scored, rate, seconds, model)
    assert best is not None
    return LoraFit(
        model=best[3],
        score=best[0],
        learning_rate=best[1],
        parameters=sum(p.numel() for p in best[3].parameters() if p.requires_grad),
        seconds=best[2],
        tried=tried,
    )


def train_lora(
    model: nn.Module,
    rows: Sequence[Encoded],
    settings: LoraSettings,
    learning_rate: float,
    seed: int,
    pad_token_id: int,
) -> nn.Module:
    """One run on a fresh model; AdamW, a cosine after the warm-up, no weight decay. Returns it in eval mode."""
    set_seed(seed)
    adapted = add_lora(model, r=settings.r, lora_alpha=settings.lora_alpha)
    budget = Budget(
        epochs=settings.epochs, min_steps=settings.min_steps, batch_size=settings.batch_size, warmup=settings.warmup
    )
    return train_peer(adapted, rows, budget, learning_rate=learning_rate, seed=seed, pad_token_id=pad_token_id)
