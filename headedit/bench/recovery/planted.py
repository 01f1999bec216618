"""The planted problem: a model whose labels come from edits in a few known heads, to see which heads are found.

A small random model is given edits in a few heads, drawn at random, and labels random prompts. A fresh edit set on the
same model then learns from those examples, and its open gates are compared with the planted ones.
"""

import random
from collections.abc import Set
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from headedit.bench.compare.methods import heads_by_vector
from headedit.bench.recovery.planted_model import CONTEXT, HEADS, LAYERS, VOCABULARY, WIDTH, build, number_of
from headedit.bench.recovery.token_accuracy import predictions, token_accuracy
from headedit.data.batches import IGNORED, Encoded
from headedit.edits import HeadEdits, attach
from headedit.edits.gate_set import GateIndex, freeze_gates
from headedit.errors import HeadEditError

__all__ = ["Planted", "build", "f1", "plant", "token_accuracy", "write"]

_FIRST_TOKEN = 3  # after padding, beginning and end of text
_PROBE = 200
_DRAWS = 200


@dataclass(frozen=True, kw_only=True)
class Planted:
    """A problem whose solution is known.

    Fields:
        shape: ``llama``, ``qwen3`` or ``gpt2``.
        seed: of everything that was drawn.
        model: the unedited model, in eval mode.
        values: the planted vectors, each [head_dim], by their gate.
        truth: for ``offset`` and ``scale`` the heads, as (site, head), that carry one.
        train: examples to learn from, ``input_ids`` and ``labels``; the labels are the planted model's predictions.
        test: unseen examples of the same kind, the same for any number of training examples.
        base_agreement: token accuracy of the unedited model on ``test``.
        effects: for each planted vector the share of the predictions that change when it alone is removed.
        min_effect: the smallest of them; 1 if nothing is planted.
    """

    shape: str
    seed: int
    model: nn.Module
    values: dict[GateIndex, Tensor]
    truth: dict[str, set[tuple[int, int]]]
    train: list[Encoded]
    test: list[Encoded]
    base_agreement: float
    effects: dict[GateIndex, float]
    min_effect: float

    def fresh(self) -> nn.Module:
        """Another copy of the unedited model."""
        return build(self.shape, self.seed)


def plant(
    shape: str,
    seed: int,
    *,
    examples: int = 200,
    test_examples: int = 200,
    tokens: int = 32,
    strength: float = 2.0,
    edits: int = 6,
    min_effect: float = 0.1,
) -> Planted:
    """Builds a random model, plants edits in it and labels random prompts.

    More examples with the same seed begin with the same ones.

    Args:
        shape: ``llama`` (8 key-value heads), ``qwen3`` (2) or ``gpt2``; each of 4 layers with 8 heads of width 16.
        seed: of the weights, the heads, the vectors and the prompts.
        examples: number of training examples.
        test_examples: number of test examples.
        tokens: tokens per example, drawn uniformly; 2 to 64.
        strength: standard deviation of the vectors: of an offset in units of the root mean square of its head's
            output, of a scale as it is.
        edits: number of planted vectors, half of them offsets, in one head fewer: one head has both. 0 plants nothing.
        min_effect: heads and vectors are drawn again until the removal of any one vector changes at least this share
            of the predictions.

    Raises:
        HeadEditError: there is no such shape, a number is impossible, or no draw has the effect.
    """
    _check_numbers(examples=examples, test_examples=test_examples, strength=strength)
    if not 2 <= tokens <= CONTEXT:
        raise HeadEditError(f"tokens: found {tokens}, expected 2 to {CONTEXT}.")
    if not 0 <= edits <= LAYERS * HEADS + 1:
        raise HeadEditError(f"edits: found {edits}, expected 0 to {LAYERS * HEADS + 1}.")
    name, model = f"{shape} {seed}", build(shape, seed)
    handle = attach(model)
    try:
        values, effects = _draw(handle, name, _prompts(name, "probe", _PROBE, tokens), strength, edits, min_effect)
        write(handle, values)
        train = _labelled(model, _prompts(name, "train", examples, tokens))
        test = _labelled(model, _prompts(name, "test", test_examples, tokens))
    finally:
        handle.detach()
    return Planted(
        shape=shape,
        seed=seed,
        model=model,
        values=values,
        truth=heads_by_vector(values),
        train=train,
        test=test,
        base_agreement=token_accuracy(model, test),
        effects=effects,
        min_effect=min(effects.values(), default=1.0),
    )


@torch.no_grad()
def write(edits: HeadEdits, values: dict[GateIndex, Tensor]) -> None:
    """Writes vectors into an edit set, with their gates open for good, and closes every other gate."""
    module = edits.module
    freeze_gates(module, values)
    sites = list(module)
    for gate, value in values.items():
        sites[gate.site].vectors[gate.vector][gate.head] = value


def f1(found: Set[tuple[int, int]], truth: Set[tuple[int, int]]) -> float:
    """Harmonic mean of precision and recall, 2·|both| / (|found| + |truth|); 1 where both sets are empty."""
    total = len(found) + len(truth)
    return 2 * len(found & truth) / total if total else 1.0


def _draw(
    edits: HeadEdits, name: str, probe: Tensor, strength: float, count: int, min_effect: float
) -> tuple[dict[GateIndex, Tensor], dict[GateIndex, float]]:
    """Draws vectors until each has at least the effect; returns them and their effects."""
    rng, generator = random.Random(number_of(name, "heads")), _generator(name, "vectors")
    heads = [(site, head) for site in range(LAYERS) for head in range(HEADS)]
    offsets = (count + 1) // 2
    units = _head_units(edits, probe)
    weakest = 0.0
    for _ in range(_DRAWS):
        chosen = rng.sample(heads, max(count - 1, min(count, 1)))
        values: dict[GateIndex, Tensor] = {}
        for site, head in chosen[:offsets]:
            size = strength * units[site][head]
            values[GateIndex(site, "offset", head)] = size * torch.randn(WIDTH, generator=generator)
        for site, head in chosen[len(chosen) - count // 2 :] if count > 1 else []:
            values[GateIndex(site, "scale", head)] = strength * torch.randn(WIDTH, generator=generator)
        effects = _effects(edits, values, probe)
        weakest = max(weakest, min(effects.values(), default=1.0))
        if min(effects.values(), default=1.0) >= min_effect:
            return values, effects
    raise HeadEditError(
        f"min_effect: in {_DRAWS} draws of {count} edits the weakest changed at most {weakest:.1%} of the predictions, "
        f"expected {min_effect:.1%}. Lower min_effect, raise strength, or plant fewer."
    )


def _effects(edits: HeadEdits, values: dict[GateIndex, Tensor], probe: Tensor) -> dict[GateIndex, float]:
    write(edits, values)
    full = predictions(edits.model, probe)
    effects = {}
    for gate in values:
        write(edits, {other: value for other, value in values.items() if other != gate})
        effects[gate] = (predictions(edits.model, probe) != full).float().mean().item()
    return effects


@torch.no_grad()
def _head_units(edits: HeadEdits, probe: Tensor) -> list[Tensor]:
    """Root mean square of each head's output in the unedited model, [heads] per site."""
    found: list[Tensor] = []

    def keep(module: nn.Module, args: tuple[Any, ...]) -> None:
        heads = rearrange(args[0], "... (heads width) -> (...) heads width", heads=HEADS)
        found.append(heads.square().mean((0, 2)).sqrt())

    with ExitStack() as stack:
        for site in edits.sites:
            stack.callback(site.module.register_forward_pre_hook(keep, prepend=True).remove)
        stack.enter_context(edits.disable_adapter())
        predictions(edits.model, probe)
    return found


def _labelled(model: nn.Module, prompts: Tensor) -> list[Encoded]:
    labels_of = predictions(model, prompts)[:, :-1].tolist()
    rows = zip(prompts.tolist(), labels_of, strict=True)
    return [{"input_ids": ids, "labels": [IGNORED, *labels]} for ids, labels in rows]


def _prompts(name: str, what: str, count: int, tokens: int) -> Tensor:
    generator = _generator(name, what)
    return torch.stack([torch.randint(_FIRST_TOKEN, VOCABULARY, (tokens,), generator=generator) for _ in range(count)])


def _generator(name: str, what: str) -> torch.Generator:
    return torch.Generator().manual_seed(number_of(name, what))


def _check_numbers(**numbers: float) -> None:
    for name, number in numbers.items():
        if not number > 0:
            raise HeadEditError(f"{name}: found {number}, expected a number above 0.")
