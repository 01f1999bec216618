"""A few optimiser steps of vectors, on some examples alone, for measurements next to a recipe."""

import math
from collections.abc import Iterator, Sequence

import torch
from torch import nn

from headedit.data.batches import Encoded, PadRight
from headedit.data.losses import total_loss
from headedit.edits import HeadEdits

_OFFSET_RATE, _SCALE_RATE = 0.1, 0.05
_FULL_RATE = 64
_WARM_UP = 0.05
_MAX_NORM = 0.3


class ShortTraining:
    """Trains vectors step by step, with a warm-up and a cosine down to 0.

    Learning rates of offsets are in units of the site's activations, and all fall with the number of open gates above
    64, so that the change of the model does not grow with it.

    Args:
        edits: the handle, whose model is run.
        vectors: those that are trained, by site: of the edits, and of whatever else acts there.
        rows: encoded examples.
        rms: root mean square of each site's input, [sites].
        batch_size: examples per step.
        pad_token_id: token id that pads batches.
        seed: of the order of the examples.
        steps: number of optimiser steps.
    """

    def __init__(
        self,
        edits: HeadEdits,
        vectors: Sequence[Sequence[dict[str, nn.Parameter]]],
        rows: Sequence[Encoded],
        *,
        rms: Sequence[float],
        batch_size: int,
        pad_token_id: int,
        seed: int,
        steps: int,
    ) -> None:
        self._edits, self._collate, self._steps, self._step = edits, PadRight(pad_token_id), steps, 0
        self._batches = _batches(rows, min(batch_size, len(rows)), seed)
        groups = [
            {
                "params": [of[site][name] for of in vectors],
                "full": _OFFSET_RATE * rms[site] if name == "offset" else _SCALE_RATE,
            }
            for site in range(len(rms))
            for name in vectors[0][site]
        ]
        self._optimizer = torch.optim.Adam(groups, eps=1e-6)
        self._parameters = [parameter for group in self._optimizer.param_groups for parameter in group["params"]]

    def backward(self, open_gates: int) -> None:
        """Computes the gradients of the next step.

        Args:
            open_gates: number of gates whose vectors act.
        """
        share = min(1.0, (self._step + 1) / (_WARM_UP * self._steps))
        factor = share * 0.5 * (1 + math.cos(math.pi * self._step / self._steps)) * min(1.0, _FULL_RATE / open_gates)
        for group in self._optimizer.param_groups:
            group["lr"] = factor * group["full"]
        self._optimizer.zero_grad()
        loss, tokens = total_loss(self._edits.model, self._collate(next(self._batches)))
        (loss / max(1, tokens)).backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self._parameters, _MAX_NORM)

    def update(self) -> None:
        """Takes the step whose gradients were computed."""
        self._optimizer.step()
        self._step += 1


def _batches(rows: Sequence[Encoded], size: int, seed: int) -> Iterator[list[Encoded]]:
    """Batches without end, every example once before any again."""
    generator = torch.Generator().manual_seed(seed)
    order: list[int] = []
    while True:
        while len(order) < size:
            order += torch.randperm(len(rows), generator=generator).tolist()
        chosen, order = order[:size], order[size:]
        yield [rows[i] for i in chosen]
