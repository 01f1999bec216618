"""``SparseTuning``: trains only some of the layers at each step, chosen by their importance or at random.

IST, importance-aware sparse tuning (Yao et al., "Layer-wise Importance Matters: Less Memory for Better Performance
in Parameter-efficient Fine-tuning of Large Language Models", Findings of EMNLP 2024, arXiv 2410.11772). A layer has
a score s of unimportance, 0 at first. Every step trains a share of the layers, sampled without replacement by a
multinomial on σ(−s). Now and then K roll-outs attenuate the edits of the layers that a multinomial on σ(s) gives;
with the reward r_k = exp(−loss_k) − mean, every layer i of roll-out k gets s_i += rate · r_k · p_i (1 − p_i), where
p = σ(s) as it was before. RST, random sparse tuning, samples uniformly and keeps no score.
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


@dataclass(frozen=True)
class _Choices:
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
    """A callback for any Trainer that trains our edits, PEFT's adapters or both: IST, or RST.

    Layers that are not chosen for a step have ``requires_grad`` off from its beginning to its end, so they cost no
    gradient, do not enter the clipped norm, and neither momentum nor weight decay moves them. Trainable
    parameters in no layer train at every step. What is drawn at a step depends on ``args.seed`` and the step alone,
    and the global random state is left as it was. A run that is resumed goes on with its scores.

    Args:
        model: the model or the handle of its edits, to have mistakes reported at once, and to use the
            handle's spec; by default the Trainer's model.
        importance: IST; False for RST.
        share: share of the layers that a step trains, to the nearest whole number of them, at least 1.
        rollout_share: share of the layers that a roll-out attenuates, rounded likewise.
        rollouts: K, the number of roll-outs, each with other layers; fewer where there are not so many choices.
        every: optimiser steps between updates of the scores.
        batch_size: examples of the training set, drawn anew for each update, on which all K losses are.
        attenuation: factor on the edits of a roll-out's layers.
        rate: factor on what is added to a score.

    Fields:
        layers: indices of the layers that have trainable parameters, [layers].
        scores: s, float64 on the CPU, [layers]; it stays 0 in RST.
        chosen: indices of the layers that the current step trains, or the last step trained.
        times_trained: number of steps that each layer was trained in, [layers].

    Raises:
        HeadEditError: a value is impossible, no spec knows the model, or no layer has a trainable parameter;
            for IST also a trainable parameter in a layer that belongs to no edit. When training begins: the
            same, several processes, or for IST a training set that cannot be drawn from.
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
        self._choices = _Choices(importance, share, rollout_share, rollouts, every, batch_size, attenuation, rate)
        self._spec = model.spec if isinstance(model, HeadEdits) else None
        self._layers: list[LayerParameters] = []
        self._frozen: list[nn.Parameter] = []
        self.chosen: list[int] = []
        self._start(None if model is None else model.model if isinstance(model, HeadEdits) else model)

    def release(self) -> None:
        """Lets every layer train again; for after a training that was broken off in the middle of a step."""
        for parameter in self._frozen:
            parameter.requires_grad_(True)
        self._frozen = []

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps, in plain values."""
        attributes = {"scores": self.scores.tolist(), "times_trained": self.times_trained.tolist()}
        return {"args": asdict(self._choices), "attributes": attributes}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Finds the layers, and starts from scores of 0 or from those of the checkpoint."""
        if args.world_size > 1:
            raise HeadEditError(f"SparseTuning trains in one process; this run has {args.world_size}.")
        self.release()
        self._start(kwargs["model"])
        dataset = kwargs["train_dataloader"].dataset
        if self._choices.importance and (not isinstance(dataset, Sized) or isinstance(dataset, IterableDataset)):
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
        """Updates the scores where it is time to, then chooses the layers of this step and freezes the others."""
        generator = _generator(args.seed, state.global_step)
        if self._choices.importance and state.global_step > 0 and state.global_step % self._choices.every == 0:
            self._update_scores(kwargs["model"], kwargs["train_dataloader"], args.device, generator)
        weights = torch.sigmoid(-self.scores) if self._choices.importance else torch.ones(len(self._layers))
        drawn = draw(weights, count(self._choices.share, len(self._layers)), generator)
        self.chosen = [self.layers[i] for i in drawn]
        for i in set(range(len(self._layers))) - set(drawn):
            self._frozen += self._layers[i].parameters
        for parameter in self._frozen:
            parameter.requires_grad_(False)
            parameter.grad = None  # what an optimiser skips; a gradient of 0 it would not

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        """Lets every layer train again, and counts."""
        self.release()
        for i, layer in enumerate(self.layers):
            self.times_trained[i] += layer in self.chosen

    def on_train_end(self, *args: Any, **kwargs: Any) -> None:
        """Lets every layer train again."""
        self.release()

    on_init_end = on_train_end  # a training that was broken off may have left layers frozen

    def _start(self, model: nn.Module | None) -> None:
        self._layers = [] if model is None else find_layers(model, self._spec)
        self.layers = [layer.layer for layer in self._layers]
        bare = [name for layer in self._layers for name in layer.bare]
        if self._choices.importance and bare:
            raise HeadEditError(
                f"IST attenuates edits, but {bare[0]} ({len(bare)} such) is trained by a method that gives no base to "
                "attenuate it to: it is neither one of our edits nor in a tuner layer of PEFT. Freeze such "
                "parameters, or use importance=False."
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
        size = count(self._choices.rollout_share, len(self._layers))
        draws = draw_distinct(torch.sigmoid(self.scores), size, self._choices.rollouts, generator)
        with rolling_out(model):
            batch = send_to_device(_batch(loader, self._choices.batch_size, generator), device)
            losses = []
            for drawn in draws:
                with attenuated([self._layers[i] for i in drawn], self._choices.attenuation):
                    losses.append(loss_of(model, batch))
        self.scores = updated(self.scores, draws, losses, self._choices.rate)


def count(share: float, layers: int) -> int:
    """A share of the layers as a number of them: the nearest, at least 1."""
    return max(1, round(share * layers))


def draw(weights: Tensor, size: int, generator: torch.Generator) -> list[int]:
    """A sample without replacement by a multinomial on ``weights``, [layers]; positions in order."""
    return sorted(torch.multinomial(weights, size, generator=generator).tolist())


def draw_distinct(weights: Tensor, size: int, number: int, generator: torch.Generator) -> list[list[int]]:
    """``number`` samples as of ``draw``, no two the same; fewer where that many are not there to be drawn."""
    number = min(number, math.comb(len(weights), size))
    drawn: dict[tuple[int, ...], None] = {}
    for _ in range(1000):  # a set may be there and all but impossible
        drawn[tuple(draw(weights, size, generator))] = None
        if len(drawn) == number:
            break
    return [list(sample) for sample in drawn]


def updated(scores: Tensor, draws: Sequence[Sequence[int]], losses: Sequence[float], rate: float) -> Tensor:
    """The scores after roll-outs, [layers]: s_i += rate · r_k · p_i (1 − p_i) for every layer i of roll-out k.

    Args:
        scores: s, [layers].
        draws: positions of the layers that each roll-out attenuated, [rollouts][size].
        losses: the loss of each, [rollouts]; where one is not a number nothing changes.
        rate: the factor.
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
