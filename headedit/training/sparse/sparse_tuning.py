"""``SparseTuning``: a callback that trains only some layers at each step, chosen by importance or at random.

IST, importance-aware sparse tuning (Yao et al., "Layer-wise Importance Matters: Less Memory for Better Performance
in Parameter-efficient Fine-tuning of Large Language Models", Findings of EMNLP 2024, arXiv 2410.11772). Every layer has
a score s of unimportance, which starts at 0. Every step trains a share of the layers, sampled without replacement from
a multinomial on σ(−s). At intervals, K roll-outs attenuate the edits of layers sampled from a multinomial on σ(s);
with the reward r_k = exp(−loss_k) − mean, every layer i of roll-out k gets s_i += rate · r_k · p_i (1 − p_i), where
p = σ(s) before the update. RST, random sparse tuning, samples uniformly and has no scores.
"""

import math
import random
from collections.abc import Mapping, Sequence, Sized
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from accelerate.utils import send_to_device
from torch import Tensor, nn
from torch.utils.data import IterableDataset
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from headedit.edits import HeadEdits
from headedit.errors import HeadEditError
from headedit.io import strict
from headedit.training.sparse.layers import LayerParameters, attenuated, find_layers, loss_of, rolling_out

_ROUNDING = 1e-9
"""Added to a number of layers before it is rounded down, so that 0.1 · 30 is 3."""


@dataclass(frozen=True)
class _Settings:
    importance: bool
    share: float
    rollout_share: float
    rollouts: int
    every: int
    batch_size: int
    attenuation: float
    rate: float

    def __post_init__(self) -> None:
        strict.check(self)
        for name in ("share", "rollout_share"):
            if not 0 < getattr(self, name) <= 1:
                raise HeadEditError(f"{name}: found {getattr(self, name)}, expected a number above 0 and up to 1.")
        for name, least in (("rollouts", 2), ("every", 1), ("batch_size", 1)):
            if getattr(self, name) < least:
                raise HeadEditError(f"{name}: found {getattr(self, name)}, expected {least} or more.")
        if not 0 <= self.attenuation < 1:
            raise HeadEditError(f"attenuation: found {self.attenuation}, expected a number from 0 to below 1.")
        if not 0 < self.rate < math.inf:
            raise HeadEditError(f"rate: found {self.rate}, expected a number above 0.")


class SparseTuning(TrainerCallback, ExportableState):  # type: ignore[misc]
    """Trains only a share of the layers at each step: a callback for any Trainer, for our edits and PEFT's adapters.

    Layers are drawn by importance (IST) or at random (RST). During a step, those not drawn have ``requires_grad`` off,
    so they cost no gradient, are not part of the clipped norm, and are moved neither by momentum nor by weight decay.
    Trainable parameters in no layer are trained at every step. The draw at a step depends on ``args.seed`` and
    the step alone, and leaves the global random state unchanged. A resumed run continues with its scores.

    Args:
        model: the model, or the handle of its edits, so that mistakes are reported at once and the handle's spec is
            used; None for the Trainer's model.
        importance: True for IST, False for RST.
        share: share of the layers that each step trains, rounded down to a whole number of layers, at least 1.
        rollout_share: share of the layers that each roll-out attenuates, rounded in the same way.
        rollouts: K, the number of roll-outs per update, no two with the same layers; fewer if there are not that many
            combinations.
        every: optimiser steps between updates of the scores.
        batch_size: number of training examples, drawn again for each update, on which all K losses are computed.
        attenuation: factor on the edits of a roll-out's layers, from 0 to below 1.
        rate: factor on the change of a score, above 0.

    Fields:
        layers: indices of the layers with trainable parameters, [layers].
        scores: s, float64 on the CPU, [layers]; 0 in RST.
        chosen: indices of the layers that the current or last step trains.
        times_trained: number of steps in which each layer was trained, [layers].

    Raises:
        HeadEditError: a setting is of a wrong type or out of range, no spec fits the model, or no layer has a
            trainable parameter; for IST, a trainable parameter in a layer belongs to no edit. At the start of
            training also: there are several processes, or, for IST, the training set has no length or index.
    """

    def __init__(
        self,
        model: nn.Module | HeadEdits | None = None,
        *,
        importance: bool = True,
        share: float = 0.25,
        rollout_share: float = 0.5,
        rollouts: int = 3,
        every: int = 10,
        batch_size: int = 16,
        attenuation: float = 0.25,
        rate: float = 10.0,
    ) -> None:
        self._settings = _Settings(importance, share, rollout_share, rollouts, every, batch_size, attenuation, rate)
        self._spec = model.spec if isinstance(model, HeadEdits) else None
        self._layers: list[LayerParameters] = []
        self._frozen: list[nn.Parameter] = []
        self.chosen: list[int] = []
        self._start(None if model is None else model.model if isinstance(model, HeadEdits) else model)

    def release(self) -> None:
        """Unfreezes every layer; call it after a training that was broken off inside a step."""
        for parameter in self._frozen:
            parameter.requires_grad_(True)
        self._frozen = []

    def state(self) -> dict[str, Any]:
        """Settings, scores and counts as plain values, for a checkpoint."""
        attributes = {"scores": self.scores.tolist(), "times_trained": self.times_trained.tolist()}
        return {"args": asdict(self._settings), "attributes": attributes}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Finds the layers, and sets the scores to 0 or to those of the checkpoint."""
        if args.world_size > 1:
            raise HeadEditError(f"SparseTuning trains in one process; this run has {args.world_size}.")
        self.release()
        self._start(kwargs["model"])
        dataset = kwargs["train_dataloader"].dataset
        if self._settings.importance and (not isinstance(dataset, Sized) or isinstance(dataset, IterableDataset)):
            raise HeadEditError(
                f"IST draws examples from the training set for its roll-outs, which a {type(dataset).__name__} does "
                "not allow. Give a set that has a length and an index, or use importance=False."
            )
        saved = state.stateful_callbacks.setdefault(type(self).__name__, self.state())
        if state.global_step > 0:
            self._resume(saved["attributes"])

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Updates the scores if an update is due, then draws the layers of this step and freezes the others."""
        generator = _generator(args.seed, state.global_step)
        if self._settings.importance and state.global_step > 0 and state.global_step % self._settings.every == 0:
            self._update_scores(kwargs["model"], kwargs["train_dataloader"], args.device, generator)
        weights = torch.sigmoid(-self.scores) if self._settings.importance else torch.ones(len(self._layers))
        drawn = draw(weights, layer_count(self._settings.share, len(self._layers)), generator)
        self.chosen = [self.layers[i] for i in drawn]
        for i in set(range(len(self._layers))) - set(drawn):
            self._frozen += self._layers[i].parameters
        for parameter in self._frozen:
            parameter.requires_grad_(False)
            parameter.grad = None  # optimisers skip None, but not a gradient of 0

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        """Unfreezes every layer, and counts the step."""
        self.release()
        for i, layer in enumerate(self.layers):
            self.times_trained[i] += layer in self.chosen

    def on_train_end(self, *args: Any, **kwargs: Any) -> None:
        """Unfreezes every layer."""
        self.release()

    on_init_end = on_train_end  # a training that was broken off may have left layers frozen

    def _start(self, model: nn.Module | None) -> None:
        self._layers = [] if model is None else find_layers(model, self._spec)
        self.layers = [layer.layer for layer in self._layers]
        bare = [name for layer in self._layers for name in layer.bare]
        if self._settings.importance and bare:
            raise HeadEditError(
                f"IST attenuates edits, but {bare[0]} ({len(bare)} such) can be trained and belongs to no edit: it is "
                "neither one of ours nor in a tuner layer of PEFT. Freeze such parameters, or use importance=False."
            )
        self.scores = torch.zeros(len(self._layers), dtype=torch.float64)
        self.times_trained = torch.zeros(len(self._layers), dtype=torch.int64)

    def _resume(self, attributes: Mapping[str, Sequence[float]]) -> None:
        if len(attributes["scores"]) != len(self._layers):
            raise HeadEditError(
                f"The checkpoint has scores of {len(attributes['scores'])} layers, but {len(self._layers)} layers of "
                "this model are trainable. Resume with the edits or adapters that it was saved with."
            )
        self.scores = torch.tensor(attributes["scores"], dtype=torch.float64)
        self.times_trained = torch.tensor(attributes["times_trained"], dtype=torch.int64)

    def _update_scores(self, model: nn.Module, loader: Any, device: torch.device, generator: torch.Generator) -> None:
        size = layer_count(self._settings.rollout_share, len(self._layers))
        draws = draw_distinct(torch.sigmoid(self.scores), size, self._settings.rollouts, generator)
        with rolling_out(model):
            batch = send_to_device(_batch(loader, self._settings.batch_size, generator), device)
            losses = []
            for drawn in draws:
                with attenuated([self._layers[i] for i in drawn], self._settings.attenuation):
                    losses.append(loss_of(model, batch))
        self.scores = updated_scores(self.scores, draws, losses, self._settings.rate)


def layer_count(share: float, layers: int) -> int:
    """A share of the layers, rounded down as in the released code, int(L · 0.25) and int(L · 0.5); at least 1."""
    return max(1, int(share * layers + _ROUNDING))


def draw(weights: Tensor, size: int, generator: torch.Generator) -> list[int]:
    """A sample of positions without replacement from a multinomial on ``weights``, [layers], in ascending order."""
    return sorted(torch.multinomial(weights, size, generator=generator).tolist())


def draw_distinct(weights: Tensor, size: int, number: int, generator: torch.Generator) -> list[list[int]]:
    """``number`` different samples as ``draw`` returns them; fewer if there are not that many combinations."""
    number = min(number, math.comb(len(weights), size))
    drawn: dict[tuple[int, ...], None] = {}
    for _ in range(1000):  # a combination can have a probability of almost 0
        drawn[tuple(draw(weights, size, generator))] = None
        if len(drawn) == number:
            break
    return [list(sample) for sample in drawn]


def updated_scores(scores: Tensor, draws: Sequence[Sequence[int]], losses: Sequence[float], rate: float) -> Tensor:
    """The scores after roll-outs, [layers]: s_i += rate · r_k · p_i (1 − p_i) for every layer i of roll-out k.

    Args:
        scores: s, [layers].
        draws: positions of the layers that each roll-out attenuated, [rollouts][size].
        losses: the loss of each roll-out, [rollouts]; if one is NaN, the scores are returned unchanged.
        rate: the factor on the change.
    """
    gains = torch.exp(-torch.tensor(losses, dtype=torch.float64))
    if gains.isnan().any():
        return scores
    p = torch.sigmoid(scores)
    new = scores.clone()
    for drawn, reward in zip(draws, gains - gains.mean(), strict=True):
        new[list(drawn)] += (rate * reward * p * (1 - p))[list(drawn)]
    return new


def _generator(seed: int, step: int) -> torch.Generator:
    mixed = np.random.SeedSequence([seed, step]).generate_state(1)[0]
    return torch.Generator().manual_seed(int(mixed))


def _batch(loader: Any, size: int, generator: torch.Generator) -> Mapping[str, Any]:
    seed, examples = int(torch.randint(2**62, (), generator=generator)), len(loader.dataset)
    chosen = random.Random(seed).sample(range(examples), min(size, examples))
    batch: Mapping[str, Any] = loader.collate_fn([loader.dataset[i] for i in chosen])
    return batch
