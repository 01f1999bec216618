"""``Session``: one run of a recipe, with its edits, encoded examples and folder, and the method that trains a stage."""

import logging
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import wait_for_everyone
from torch import Tensor
from transformers import PrinterCallback, TrainingArguments, set_seed
from transformers.integrations import TensorBoardCallback

from headedit.data.batches import Encoded, PadRight
from headedit.data.losses import example_losses
from headedit.edits import HeadEdits
from headedit.edits.gate_set import GateIndex, take_out
from headedit.hf.checkpointing import enable_checkpointing, is_checkpointing
from headedit.hf.sharding import data_parallel_size
from headedit.runs.files import HISTORY_FILE
from headedit.runs.folder import CHECKPOINTS, remove_run
from headedit.runs.history import History
from headedit.runs.pruning_path import PruningPath
from headedit.runs.record import no_better_than_base, worse_than_base
from headedit.training.loop.checkpoints import last_complete, resumable
from headedit.training.loop.interrupts import StopOnSignal
from headedit.training.loop.objective import Penalty
from headedit.training.loop.progress import EditProgress
from headedit.training.loop.trainer import HeadEditTrainer
from headedit.training.prefix_cache import FrozenPrefix
from headedit.training.processes import DEVICE_ARGUMENTS
from headedit.training.recipes.dropout import with_dropout
from headedit.training.recipes.gradients import activation_rms, few_tokens, gate_gradients
from headedit.training.recipes.journal import Journal, own_identity, restore_stage, snapshot_stage
from headedit.training.recipes.rates import with_rates
from headedit.training.recipes.stage import Stage, merge_arguments
from headedit.training.validation import eval_batch_size

logger = logging.getLogger(__name__)

GIVEN = "given as the validation set"
"""Who held out examples that a session was given; their source is not known here."""


def _log_into(trainer: HeadEditTrainer, folder: Path) -> None:
    """Lets tensorboard log into a folder, unless its environment variable names one."""
    for callback in trainer.callback_handler.callbacks:
        if isinstance(callback, TensorBoardCallback) and callback.logging_dir is None:
            callback.logging_dir = str(folder)


@dataclass
class Session:
    """One run of a recipe: its edits, examples, folder and history.

    Fields:
        edits: the handle.
        train: encoded training examples.
        valid: encoded validation examples; None if there are none.
        folder: the folder for checkpoints and the history.
        seed: seed of the order of examples and of the gates' noise.
        pad_token_id: token id that pads batches.
        progress: show progress bars.
        identity: hashes of everything else that the run's result depends on, by name; a resumed run must have the same.
        arguments: fields of ``TrainingArguments`` for every stage; they override the stage's own.
        resume: resume the run that was stopped in the folder, if there is one.
        overwrite: remove what headedit wrote into the folder first.
        batch_size: examples per training step.
        planned: optimiser steps of the whole run, for its bar; None where the bar of each stage shows its own.
        prefix: the cache of the layers below the edited ones; None to run all layers in every pass.
        history: rows of all stages.
        steps: optimiser steps taken so far.
        kept_step: the step that the edits are from.
        best_eval_loss: the validation loss of the kept edits, in nats per token; None without validation.
        path: the pruning path, if the recipe searched.
        held_out: the figures of ``held_out_figures``, where the recipe measured them itself.
        key: hashes of everything that the run's result depends on, by name: ``identity``, seed and first edits.
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
    overwrite: bool = False
    batch_size: int = 8
    planned: int | None = None
    prefix: FrozenPrefix | None = None
    history: History = field(init=False)
    key: dict[str, str] = field(init=False)
    steps: int = 0
    kept_step: int = 0
    best_eval_loss: float | None = None
    path: PruningPath | None = None
    held_out: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        devices = {key: value for key, value in self.arguments.items() if key in DEVICE_ARGUMENTS}
        processes = TrainingArguments(output_dir=str(self.folder), report_to=[], **devices)  # starts the process group
        projections = (site.module for site in self.edits.sites)
        self.processes = data_parallel_size(int(processes.world_size), self.edits.model, projections)
        self.main = processes.process_index == 0
        self._start = self.edits.snapshot()
        self.journal = Journal(self.folder / CHECKPOINTS, writes=self.main)
        self.key = {**self.identity, **own_identity(self.seed, self._start)}
        wait_for_everyone()  # every process has checked the folder before the first one changes it
        if self.overwrite and self.main:
            remove_run(self.folder)
        self.journal.begin(self.key, resume=self.resume)
        wait_for_everyone()
        file = self.folder / HISTORY_FILE
        rows = History.read(file).rows if self.resume and file.is_file() else []
        self.history = History(file if self.main else None, rows)
        if rows:
            self.history.restart(max(row["step"] for row in rows))

    def restore_start(self) -> None:
        """Restores the edits as they were when the session began."""
        self.edits.restore(self._start)

    def in_folder(self, folder: Path) -> "Session":
        """A session with the same examples and the edits as they are now, with a folder and history of its own."""
        fresh: dict[str, Any] = {"steps": 0, "kept_step": 0, "best_eval_loss": None, "path": None, "held_out": None}
        return replace(self, folder=folder, overwrite=False, **fresh)

    def held_out_figures(self) -> dict[str, Any] | None:
        """The mean loss of base and edited model on held-out examples, in nats per token, and what these are.

        Returns:
            ``examples``, how many; ``by``, who held them out; ``base`` and ``edited``. None if none were held out.
        """
        if self.valid is None:
            return self.held_out
        edited = self.example_losses().mean().item()
        with self.edits.disable_adapter():
            base = self.example_losses().mean().item()
        return {"examples": len(self.valid), "by": GIVEN, "base": base, "edited": edited}

    def keep_better(self) -> dict[str, Any] | None:
        """The figures of ``held_out_figures``; edits that are more than 1 % worse than the base model are taken out."""
        found = self.held_out_figures()
        if found is not None and not found["edited"] <= found["base"]:
            worse = worse_than_base(found)
            logger.warning(worse or no_better_than_base(found))
            if worse is not None:
                take_out(self.edits.module)
                self.kept_step, self.best_eval_loss = 0, found["base"]
        return found

    @property
    def eval_batch_size(self) -> int:
        """Examples per batch without gradients, also of the Trainer's validation."""
        given = self.arguments.get("per_device_eval_batch_size")
        return int(given) if given else eval_batch_size(self.batch_size, checkpointing=self.checkpointing)

    @property
    def batches(self) -> int:
        """Batches per optimiser step: of all processes, and of gradient accumulation."""
        return self.processes * int(self.arguments.get("gradient_accumulation_steps", 1))

    @property
    def checkpointing(self) -> bool:
        """Whether training runs with gradient checkpointing."""
        return bool(self.arguments.get("gradient_checkpointing")) or is_checkpointing(self.edits.model)

    def without_prefix_cache(self) -> AbstractContextManager[None]:
        """A context in which every pass runs all layers."""
        return nullcontext() if self.prefix is None else self.prefix.paused()

    def example_losses(self, rows: Sequence[Encoded] | None = None) -> Tensor:
        """The loss of every example in nats per token, [examples]; by default of the validation set."""
        chosen = self.valid if rows is None else rows
        assert chosen is not None
        return example_losses(self.edits.model, chosen, PadRight(self.pad_token_id), self.eval_batch_size)

    def gate_gradients(self, rows: Sequence[Encoded]) -> dict[GateIndex, float]:
        """The norm of the gradient of some examples' loss along every gate's vectors; see ``gradients``."""
        if self.checkpointing and not is_checkpointing(self.edits.model):
            enable_checkpointing(self.edits.model)
        size, collate = self.batch_size, PadRight(self.pad_token_id)
        batches = (collate(rows[start : start + size]) for start in range(0, len(rows), size))
        return gate_gradients(self.edits, batches, self._activation_rms(rows))

    def train_stage(
        self,
        stage: Stage,
        *,
        name: str,
        objective: Penalty | None = None,
        callbacks: Sequence[Any] = (),
        train: Sequence[Encoded] | None = None,
        valid: Sequence[Encoded] | None = None,
    ) -> None:
        """Trains a stage, starting from the edits as they are; or reads its result, if the journal has it.

        Args:
            stage: settings of the stage.
            name: name of the stage, in the history and on the progress bar.
            objective: the penalty; None for no penalty.
            callbacks: callbacks of transformers' Trainer.
            train: training examples; None for those of the session.
            valid: examples for a validation after every epoch, early stopping, and ``lr_schedule="adaptive"``.

        Raises:
            HeadEditError: the learning rate follows the validation loss and there are no validation examples.
            KeyboardInterrupt: Ctrl-C or SIGTERM; the step in which it arrived is saved.
        """
        finished = self.journal.finished(name)
        if finished is not None:
            self._set_figures(restore_stage(finished, self.edits.module, callbacks))
            return
        rows = self.train if train is None else train
        stage = with_dropout(with_rates(stage, self.edits), self.edits, rows)
        stage.check_schedule(validated=valid is not None)
        set_seed(self.seed)
        settings = stage.arguments(len(rows), self.batches, validated=valid is not None)
        stops_early = settings["load_best_model_at_end"]
        folder = self.journal.folder / self.journal.key(name)
        stop = StopOnSignal()
        trainer = HeadEditTrainer(
            self.edits,
            objective=objective,
            gate_learning_rate=stage.gate_lr,
            offset_learning_rates=self._offset_rates(stage, rows),
            lr_schedule=None if "lr_scheduler_type" in self.arguments else stage.lr_schedule,
            history=self.history,
            first_step=self.steps,
            stage=name,
            args=self._training_arguments(settings, folder, validated=valid is not None),
            train_dataset=rows,
            eval_dataset=valid,
            data_collator=PadRight(self.pad_token_id),
            callbacks=[*callbacks, *([stage.early_stopping()] if stops_early else []), stop],
        )
        if not self.progress:
            trainer.remove_callback(PrinterCallback)  # which prints every log if there is no progress bar
        elif self.planned is not None:
            trainer.pop_callback(EditProgress)
            trainer.add_callback(EditProgress(name, total=self.planned, done=self.steps))
        _log_into(trainer, self.journal.logs(name))
        last = last_complete(folder) if resumable(callbacks) else None
        with stop.handling_signals(), self.edits.head_dropout(stage.dropout or 0.0):
            trainer.train(resume_from_checkpoint=None if last is None else str(last))
        if stop.requested:
            step = self.steps + trainer.state.global_step
            raise KeyboardInterrupt(
                f"stopped after step {step}, which is saved; continue from there with resume=True, or --resume."
            )
        figures = {
            "kept_step": trainer.kept_step(),
            "best_eval_loss": trainer.state.best_metric
            if stops_early and trainer.args.load_best_model_at_end
            else None,
            "steps": self.steps + trainer.state.global_step,
        }
        self.journal.finish(name, snapshot_stage(self.edits.module, callbacks, figures))
        self._set_figures(figures)

    def _training_arguments(self, settings: Mapping[str, Any], folder: Path, *, validated: bool) -> TrainingArguments:
        """The arguments of a stage's Trainer: the stage's settings, under those given for the whole run."""
        own = {
            **settings,
            "per_device_eval_batch_size": self.eval_batch_size,
            "output_dir": str(folder),
            "save_total_limit": 2,
            "prediction_loss_only": True,
            "remove_unused_columns": False,
            "dataloader_pin_memory": torch.cuda.is_available(),
            "ddp_find_unused_parameters": False,
            "report_to": [],
            "seed": self.seed,
            "disable_tqdm": not self.progress,
        }
        return TrainingArguments(**merge_arguments(own, self.arguments, validated=validated))

    def _set_figures(self, figures: dict[str, Any]) -> None:
        self.steps, self.kept_step = figures["steps"], figures["kept_step"]
        self.best_eval_loss = figures["best_eval_loss"]

    def _offset_rates(self, stage: Stage, rows: Sequence[Encoded]) -> list[float]:
        rate = stage.offset_lr
        assert rate is not None
        if not stage.relative:
            return [rate] * len(self.edits.sites)
        return [rate * rms for rms in self._activation_rms(rows)]

    def _activation_rms(self, rows: Sequence[Encoded]) -> list[float]:
        with self.without_prefix_cache():  # padding counts here, and the cache replaces what is at padding
            return activation_rms(self.edits, lambda: self.example_losses(few_tokens(rows)))
