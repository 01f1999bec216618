"""``Pruning``: a callback that closes gates step by step while the edits are trained."""

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from headedit.edits import HeadEdits
from headedit.edits.gate_set import GateIndex, all_gates, close
from headedit.training.loop.state import State
from headedit.training.recipes.model_selection import Recorder

Scores = dict[tuple[int, str], Tensor]
"""The score of each gate, [heads], by site and vector."""

_FEW = 64


def level_sizes(gates: int, smallest: int) -> list[int]:
    """Numbers of gates of the levels: each is 0.8 of one of many gates, 0.9 of one of few, and at least one fewer."""
    found = [gates]
    while found[-1] > smallest:
        share = 0.9 if found[-1] <= _FEW else 0.8
        found.append(max(smallest, min(found[-1] - 1, int(share * found[-1]))))
    return found


class Pruning(TrainerCallback):  # type: ignore[misc]
    """Closes gates for good, the least important first, level by level in a window of the run.

    The levels are spread evenly over the window. Importance is the contribution of a gate's vectors to the loss, to
    first order, s = ⟨v, ∂L/∂v⟩², as a running mean over steps; or log α.

    Args:
        edits: the handle of the edits that are trained.
        smallest: number of gates of the last level.
        window: shares of the run at which the first gates are closed and the last level is reached.
        memory: weight of the previous running mean at each step.
        by: what importance is: ``loss`` for the contribution to the loss, ``gate`` for log α.
        gates: the gates to start with, all others being closed already; None for all gates.
        recorder: records every level at its end, before the next one starts.

    Fields:
        alive: the gates that are not closed for good, sorted.
        levels: the number of gates of each level.
        dropped: the gates that were closed for good, in the order in which they were closed.
    """

    def __init__(
        self,
        edits: HeadEdits,
        *,
        smallest: int,
        window: tuple[float, float],
        memory: float,
        by: str = "loss",
        gates: Collection[GateIndex] | None = None,
        recorder: Recorder | None = None,
    ) -> None:
        self.edits, self.window, self.memory, self.by, self.recorder = edits, window, memory, by, recorder
        self.alive = all_gates(edits.module) if gates is None else sorted(gates)
        self.levels = level_sizes(len(self.alive), min(smallest, len(self.alive)))
        self.dropped: list[GateIndex] = []
        self._level = 0
        self._scores: Scores = {}

    def order(self) -> list[GateIndex]:
        """The gates it started with, the most important first: the first k are those of the level with k gates."""
        return [*self._ranked(), *reversed(self.dropped)]

    def state_dict(self) -> State:
        """The closed gates, the scores of the others, and the recorded levels."""
        recorded = State({}, {}) if self.recorder is None else self.recorder.state_dict()
        plain = {
            "alive": [list(gate) for gate in self.alive],
            "dropped": [list(gate) for gate in self.dropped],
            "level": self._level,
            "recorded": recorded.plain,
        }
        scores = {f"score/{site}/{vector}": score for (site, vector), score in self._scores.items()}
        return State(plain, scores | {f"recorded/{name}": tensor for name, tensor in recorded.tensors.items()})

    def load_state_dict(self, state: State) -> None:
        """Restores closed gates, scores and recorded levels."""
        self.alive, self.dropped = ([GateIndex(*row) for row in state.plain[key]] for key in ("alive", "dropped"))
        self._level = state.plain["level"]
        device = next(self.edits.module.parameters()).device
        self._scores, recorded = {}, {}
        for key, tensor in state.tensors.items():
            kind, _, name = key.partition("/")
            if kind == "score":
                site, _, vector = name.partition("/")
                self._scores[int(site), vector] = tensor.to(device)
            else:
                recorded[name] = tensor
        if self.recorder is not None:
            self.recorder.load_state_dict(State(state.plain["recorded"], recorded))

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Updates the scores with the gradients of the step."""
        if self.by == "gate":
            return
        with torch.no_grad():
            for i, edit in enumerate(self.edits.module):
                for owner in edit.gated_vectors():
                    vectors = [edit.vectors[name] for name in edit.vectors_of(owner)]
                    effects = [(v * v.grad).sum(-1) for v in vectors if v.grad is not None]
                    if effects:
                        score = torch.stack(effects).sum(0).square()
                        before = self._scores.get((i, owner))
                        self._scores[i, owner] = (
                            score if before is None else self.memory * before + (1 - self.memory) * score
                        )

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Closes gates down to the level that is due at this step."""
        first, last = self.window
        share = (state.global_step / max(1, state.max_steps) - first) / (last - first)
        due = int(min(1.0, max(0.0, share)) * (len(self.levels) - 1))
        while self._level < due:
            self._finish_level()
            self._level += 1
            ranked = self._ranked()
            keep, drop = ranked[: self.levels[self._level]], ranked[self.levels[self._level] :]
            self.dropped += reversed(drop)
            self.alive = sorted(keep)
            close(self.edits.module, drop)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Ends the last level."""
        self._finish_level()

    def _finish_level(self) -> None:
        if self.recorder is not None:
            self.recorder.record(self.alive)

    def _ranked(self) -> list[GateIndex]:
        values = {key: score.tolist() for key, score in self._importances().items()}

        def importance(gate: GateIndex) -> float:
            by_head: list[float] | None = values.get((gate.site, gate.vector))
            return 0.0 if by_head is None else by_head[gate.head]

        return sorted(self.alive, key=importance, reverse=True)

    def _importances(self) -> Scores:
        if self.by == "loss":
            return self._scores
        found: Scores = {}
        for i, edit in enumerate(self.edits.module):
            for owner in edit.gated_vectors():
                gate = edit.gate(owner)
                assert gate is not None
                found[i, owner] = gate.detach()
        return found
