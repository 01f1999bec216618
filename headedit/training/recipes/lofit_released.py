"""``lofit-released``: LoFiT as its released scripts train Llama 2 7B (code ``fc2869/lo-fit``)."""

import math
from dataclasses import dataclass

from headedit.training.loop.schedules import LRSchedule
from headedit.training.recipes.lofit import Lofit


@dataclass(frozen=True, kw_only=True)
class LofitReleased(Lofit):
    """LoFiT with the schedule, decay and rates of its released scripts.

    They leave the schedule and the weight decay to transformers' Trainer: both stages fall linearly to 0 without a
    warm-up, and there is no weight decay, where the paper names 0.01. The second stage has the rate 1e-2. The fields
    are those of ``lofit``; the scripts keep 32 heads of a 7B model (``heads=32``), or else int(0.1 · L · H).
    """

    lr_schedule: LRSchedule = "linear"
    weight_decay: float = 0.0
    edit_lr: float = 1e-2

    def count(self, heads: int) -> int:
        """How many of a number of heads are kept: ``share`` of them, rounded down, at least one."""
        return max(1, math.floor(self.share * heads + 1e-9))  # 0.29 · 100 is 28.999… in floating point
