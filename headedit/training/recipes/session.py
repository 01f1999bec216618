"""One call of ``fit`` as the recipes see it: edits, encoded examples, a folder, and stages to train in."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import wait_for_everyone
from torch import Tensor
from transformers import EarlyStoppingCallback, PrinterCallback, TrainingArguments, set_seed

from headedit.data.batches import Encoded, PadRight
from headedit.data.losses import example_losses
from headedit.edits import HeadEdits
from headedit.edits.gate_set import Gate
from headedit.errors import HeadEditError
from headedit.runs.files import HISTORY_FILE
from headedit.runs.history import History
from headedit.runs.pruning_path import PruningPath
from headedit.training.loop.checkpoints import last_whole, resumable
from headedit.training.loop.interrupts import StopWhenAsked
from headedit.training.loop.objective import Penalty
from headedit.training.loop.schedules import lr_factor
from headedit.training.loop.trainer import HeadEditTrainer
from headedit.training.prefix_cache import FrozenPrefix
from headedit.training.recipes.gradients import slopes_of, units_of
from headedit.training.recipes.journal import Journal, digest_tensors, put_back, taken_down
from headedit.training.recipes.stage import Stage

CHECKPOINTS = "checkpoints"


@dataclass
class Session:
    """What a recipe works with.

    Fields:
        edits: the handle.
        train: examples to learn from.
        valid: examples to choose by; None where there are none.
        folder: gets checkpoints and the history.
        seed: of the order of examples and the gates' noise.
        pad_token_id: for batches.
        progress: show bars.
        identity: hashes of what else the run depends on, by name; a run that is gone on with must have the same.
        arguments: fields of ``TrainingArguments`` that hold for every stage, over its own choices.
        resume: go on with the run that was stopped in the folder, if there is one.
        batch_size: examples a step, which the batches that are only measured go by.
        prefix: what keeps the output of the layers below the edited ones; None to run all layers in every pass.
        history: rows of all stages.
        steps: optimiser steps so far.
        kept_step: the step that the edits are of.
        best_eval_loss: the validation loss of the edits that are kept, in nats a token; None without validation.
        path: what a search found.
    """

    edits: HeadEdits
    train: Sequence[Encoded]
    valid: Sequence[Encoded] | None
    folder: Path
    seed: int
    pad_token_id: int
    progress: bool
    identity: Mapping[str, str] = field(default_factory=dict)
    arguments: Mapping[str, Any] = field(default_factory=dict)
    resume: bool = False
    batch_size: int = 8
    prefix: FrozenPrefix | None = None
    history: History = field(init=False)
    steps: int = 0
    kept_step: int = 0
    best_eval_loss: float | None = None
    path: PruningPath | None = None

    def __post_init__(self) -> None:
        devices = {key: value for key, value in self.arguments.items() if key in _DEVICES}
        processes = TrainingArguments(output_dir=str(self.folder), report_to=[], **devices)  # starts the process group
        self.processes, self.main = int(processes.world_size), processes.process_index == 0
        self._start = self.edits.snapshot()
        self.journal = Journal(self.folder / CHECKPOINTS, writes=self.main)
        own = {"seed": str(self.seed), "edits": digest_tensors(self._start)}
        self.journal.begin({**self.identity, **own}, resume=self.resume)
        wait_for_everyone()
        file = self.folder / HISTORY_FILE
        rows = History.read(file).rows if self.resume and file.is_file() else []
        self.history = History(file if self.main else None, rows)
        if rows:
            self.history.restart(max(row["step"] for row in rows))

    def restart(self) -> None:
        """Puts the edits back to what they were when the session began."""
        self.edits.restore(self._start)

    def beside(self, folder: Path) -> "Session":
        """The same examples and edits, as they are now, with a folder and history of its own."""
        return replace(self, folder=folder, steps=0, kept_step=0, best_eval_loss=None, path=None)

    def plainly(self) -> AbstractContextManager[None]:
        """A context in which every pass runs all layers."""
        return nullcontext() if self.prefix is None else self.prefix.paused()

    def measure(self, rows: Sequence[Encoded] | None = None) -> Tensor:
        """The loss of every example, by default of the validation set, [examples]."""
        chosen = self.valid if rows is None else rows
        assert chosen is not None
        return example_losses(self.edits.model, chosen, PadRight(self.pad_token_id), 4 * self.batch_size)

    def run(
        self,
        stage: Stage,
        *,
        name: str,
        objective: Penalty | None = None,
        callbacks: Sequence[Any] = (),
        train: Sequence[Encoded] | None = None,
        valid: Sequence[Encoded] | None = None,
    ) -> None:
        """Trains a stage on the edits as they are; with ``valid`` it is validated every epoch.

        Args:
            stage: the choices.
            name: of the stage, in the history and on the bar.
            objective: the penalty; by default none.
            callbacks: of transformers' Trainer.
            train: other examples than the session's.
            valid: for a validation every epoch, early stopping, and a schedule that goes by it.

        Raises:
            HeadEditError: the schedule goes by the validation loss and there is none.
        """
        finished = self.journal.finished(name)
        if finished is not None:
            self._take(put_back(finished, self.edits.module, callbacks))
            return
        rows = self.train if train is None else train
        if stage.lr_schedule == "adaptive" and valid is None:
            raise HeadEditError("lr_schedule 'adaptive' goes by the validation loss; give a validation set.")
        set_seed(self.seed)
        given = dict(self.arguments)
        together = self.processes * int(given.get("gradient_accumulation_steps", 1))
        place = self.journal.folder / self.journal.key(name)
        chosen = {
            **stage.arguments(len(rows), together, validated=valid is not None),
            "output_dir": str(place),
            "save_total_limit": 2,
            "prediction_loss_only": True,
            "remove_unused_columns": False,
            "dataloader_pin_memory": torch.cuda.is_available(),
            "ddp_find_unused_parameters": False,
            "report_to": [],
            "seed": self.seed,
            "disable_tqdm": not self.progress,
        }
        stops = chosen["load_best_model_at_end"]
        if valid is not None and given.get("save_strategy") == "steps":  # or its end were no place to go on from
            given = {"eval_strategy": "steps", "eval_steps": given.get("save_steps"), **given}
        arguments = TrainingArguments(**{**chosen, **given})
        stop = StopWhenAsked()
        trainer = HeadEditTrainer(
            self.edits,
            objective=objective,
            gate_learning_rate=stage.gate_lr,
            offset_learning_rates=self._offset_rates(stage, rows),
            lr_factor=lr_factor(stage.lr_schedule, chosen["warmup_steps"]),
            history=self.history,
            first_step=self.steps,
            stage=name,
            args=arguments,
            train_dataset=rows,
            eval_dataset=valid,
            data_collator=PadRight(self.pad_token_id),
            callbacks=[*callbacks, *([EarlyStoppingCallback(stage.patience)] if stops else []), stop],
        )
        if not self.progress:
            trainer.remove_callback(PrinterCallback)  # which prints every log where there is no bar
        last = last_whole(place) if resumable(callbacks) else None
        with stop.listening():
            trainer.train(resume_from_checkpoint=None if last is None else str(last))
        if stop.asked:
            step = self.steps + trainer.state.global_step
            raise KeyboardInterrupt(
                f"stopped after step {step}, which is saved; resume=True, or --resume, goes on there."
            )
        figures = {
            "kept_step": trainer.kept_step(),
            "best_eval_loss": trainer.state.best_metric if stops else None,
            "steps": self.steps + trainer.state.global_step,
        }
        self.journal.finish(name, taken_down(self.edits.module, callbacks, figures))
        self._take(figures)

    def _take(self, figures: dict[str, Any]) -> None:
        self.steps, self.kept_step = figures["steps"], figures["kept_step"]
        self.best_eval_loss = figures["best_eval_loss"]

    def slopes(self, rows: Sequence[Encoded]) -> dict[Gate, float]:
        """How steeply the loss on some examples falls along the vectors of every gate; see ``slopes_of``."""
        size, collate = 2 * self.batch_size, PadRight(self.pad_token_id)
        parts = (rows[start : start + size] for start in range(0, len(rows), size))
        return slopes_of(self.edits, ((len(part) / len(rows), collate(part)) for part in parts), self._units(rows))

    def _offset_rates(self, stage: Stage, rows: Sequence[Encoded]) -> list[float]:
        if not stage.relative:
            return [stage.offset_lr] * len(self.edits.sites)
        return [stage.offset_lr * unit for unit in self._units(rows)]

    def _units(self, rows: Sequence[Encoded]) -> list[float]:
        with self.plainly():  # padding counts here, and it is not the same where its lower layers are not run
            return units_of(self.edits, lambda: self.measure(rows[:_SAMPLE]))


_DEVICES = ("use_cpu", "ddp_backend", "ddp_timeout")
_SAMPLE = 64
