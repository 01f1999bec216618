"""Checkpoints of a Trainer that learns edits: all that is trained and the optimiser state, never the base model."""

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerState
from transformers.trainer_utils import TrainOutput

from headedit.edits import HeadEdits
from headedit.edits.files.storage import load_tensors
from headedit.hf.sharding import is_sharded
from headedit.runs.history import History
from headedit.specs import MODULE_NAME
from headedit.training.loop import checkpoints
from headedit.training.loop.interrupts import StopOnSignal
from headedit.training.loop.other_weights import load_weights, other_weights, refuse_other_weights, save_weights
from headedit.training.loop.policy import restore_reference, save_reference
from headedit.training.loop.sharding import exclude_from_sharding, unsharded

_TrainerMethods: Any = object  # a Trainer comes after it in the bases, and has the methods that it calls


class SavesEdits(_TrainerMethods):  # type: ignore[misc]
    """The methods of ``HeadEditMixin`` that write checkpoints and resume from them.

    Fields:
        edits: the handle.
        history: rows of the run.
        first_step: number of steps that the stages before this Trainer took.
    """

    edits: HeadEdits
    history: History
    first_step: int
    _eval_losses: list[float]
    _plain_loss: Tensor | None
    _plain_since: int

    def other_weights(self) -> dict[str, nn.Parameter]:
        """What is trained besides the edits, such as LoRA, a norm or a head, by name.

        Raises:
            HeadEditError: each process has a part of them, which one process cannot save.
        """
        found = other_weights(self.model, self.edits)
        if any(map(is_sharded, found.values())):
            self._refuse_other_weights()
        return found

    def _refuse_other_weights(self) -> None:
        way_out = "Or train them without FSDP, DeepSpeed and tensor parallelism."
        refuse_other_weights(self.model, self.edits, "Sharded training", way_out)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        if self.args.should_save:
            folder = self.args.output_dir if output_dir is None else output_dir
            self.edits.save_pretrained(folder, card=False)
            save_weights(Path(folder), self.other_weights())

    def _load_trained(self, folder: str) -> None:
        """Sets the edits, and what was trained with them, to what ``_save`` wrote into a folder."""
        load_weights(Path(folder), self.other_weights())
        load_tensors(self.edits, folder)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        folder = Path(self._get_output_dir(trial=trial)) / f"checkpoint-{self.state.global_step}"
        with checkpoints.removed_on_failure(folder), unsharded(self):
            super()._save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                save_reference(self, folder)
                loss = None if self._plain_loss is None else self._plain_loss.item()
                plain = {"loss": loss, "since": self._plain_since, "ended": self._has_ended()}
                checkpoints.mark_complete(folder, self.callback_handler.callbacks, plain)

    def _has_ended(self) -> bool:
        """Whether a callback, and not a signal, has ended training before its last step."""
        signals = [c for c in self.callback_handler.callbacks if isinstance(c, StopOnSignal)]
        early = self.control.should_training_stop and self.state.global_step < self.state.max_steps
        return early and not any(callback.requested for callback in signals)

    def _end_at(self, checkpoint: str) -> TrainOutput:
        """The result of a training that a callback had already ended at this checkpoint."""
        self._load_from_checkpoint(checkpoint)
        self.state = TrainerState.load_from_json(str(Path(checkpoint) / "trainer_state.json"))
        if self.args.load_best_model_at_end and self.state.best_model_checkpoint is not None:
            self._load_best_model()
        return TrainOutput(self.state.global_step, math.nan, {})

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        with unsharded(self):
            super()._load_optimizer_and_scheduler(checkpoint)

    def _prepare_for_training(self, *args: Any, **kwargs: Any) -> Any:
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            self._refuse_other_weights()
        exclude_from_sharding(self.accelerator, self.edits.model.get_submodule(MODULE_NAME))
        return super()._prepare_for_training(*args, **kwargs)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        restore_reference(self, Path(resume_from_checkpoint))
        self._load_trained(resume_from_checkpoint)
        state = TrainerState.load_from_json(str(Path(resume_from_checkpoint) / "trainer_state.json"))
        self._eval_losses = [row["eval_loss"] for row in state.log_history if "eval_loss" in row]
        if self.history.path is not None and self.history.path.is_file():
            self.history.rows = History.read(self.history.path).rows
        self.history.restart(self.first_step + state.global_step)
        marked = checkpoints.restore_callbacks(Path(resume_from_checkpoint), self.callback_handler.callbacks)
        self._plain_since = marked.get("since", state.global_step)
        loss = marked.get("loss")
        self._plain_loss = None if loss is None else torch.tensor(loss, device=self.args.device)

    def _load_best_model(self) -> None:
        assert self.state.best_model_checkpoint is not None
        self._load_trained(self.state.best_model_checkpoint)
