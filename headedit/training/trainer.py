"""``HeadEditTrainer``: transformers' Trainer for edits, with two learning rates, a penalty and a history."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import Trainer, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ProgressCallback

from headedit.edits import HeadEdits
from headedit.edits.storage import load_tensors
from headedit.history import HISTORY_FILE, History
from headedit.training.objective import Objective


class HeadEditTrainer(Trainer):  # type: ignore[misc]
    """A Trainer that learns the edits on a model and nothing else.

    It differs from ``transformers.Trainer`` in four things: gates have their own learning rate; the penalty
    of the ``Objective`` is added in training and never in evaluation; checkpoints hold the edits and the
    optimiser, not the base model; every logged step becomes a row of ``history``.

    Args:
        edits: the handle of the edits on the model to train.
        objective: the penalty; by default none.
        gate_learning_rate: learning rate of the gate logits; ``args.learning_rate`` is that of the vectors.
        history_dir: folder for ``history.jsonl``; by default ``args.output_dir``.
        kwargs: as for ``transformers.Trainer``, without ``model``.
    """

    def __init__(
        self,
        edits: HeadEdits,
        *,
        objective: Objective | None = None,
        gate_learning_rate: float | None = None,
        history_dir: Path | None = None,
        **kwargs: Any,
    ) -> None:
        with _accepted_for_training(edits.model):
            super().__init__(model=edits.model, **kwargs)
        self.edits = edits
        self.objective = Objective() if objective is None else objective
        self.gate_learning_rate = self.args.learning_rate if gate_learning_rate is None else gate_learning_rate
        folder = Path(self.args.output_dir if history_dir is None else history_dir)
        self.history = History(folder / HISTORY_FILE if self.is_world_process_zero() else None)
        self._plain_loss: Tensor | None = None
        self._plain_since = 0
        if self.pop_callback(ProgressCallback) is not None:
            self.add_callback(EditProgress)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """One group for vectors, one for gates, one for whatever else is trainable; no weight decay on gates."""
        made: torch.optim.Optimizer | None = getattr(self, "optimizer", None)
        if made is None:
            vectors, gates = self.edits.vector_parameters(), self.edits.gate_parameters()
            ours = {id(p) for p in [*vectors, *gates]}
            others = [p for p in self.model.parameters() if p.requires_grad and id(p) not in ours]
            groups = [
                {"params": vectors, "weight_decay": self.args.weight_decay},
                {"params": gates, "weight_decay": 0.0, "lr": self.gate_learning_rate},
                {"params": others, "weight_decay": self.args.weight_decay},
            ]
            cls, kwargs = self.get_optimizer_cls_and_kwargs(self.args, self.model)
            self.optimizer = made = cls([group for group in groups if group["params"]], **kwargs)
        assert made is not None
        return made

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The plain loss on the response tokens; in training with the penalty added."""
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, num_items_in_batch=num_items_in_batch)
        if model.training:
            # transformers divides a mean by the accumulation steps later, and leaves a loss normalised by
            # the tokens of all of them alone: then the penalty and the record take the division here.
            steps = self.current_gradient_accumulation_steps
            whole = self.model_accepts_loss_kwargs and num_items_in_batch is not None
            plain = loss.detach() if whole else loss.detach() / steps
            self._plain_loss = plain if self._plain_loss is None else self._plain_loss + plain
            penalty = self.objective.penalty(self.edits, self.progress()).to(loss.device)
            loss = loss + (penalty / steps if whole else penalty)
        return (loss, outputs) if return_outputs else loss

    def progress(self) -> float:
        """Share of the run that is done, 0 to 1."""
        done: int = self.state.global_step
        return done / max(1, int(self.state.max_steps))

    def kept_step(self) -> int:
        """The step that the edits are of after training: the best one that was loaded, or the last."""
        best = self.state.best_model_checkpoint if self.args.load_best_model_at_end else None
        return int(self.state.global_step if best is None else Path(best).name.rpartition("-")[2])

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any) -> Any:
        """Trains the edits; see ``transformers.Trainer.train``."""
        self._plain_loss, self._plain_since = None, 0
        if not resume_from_checkpoint:
            self.history.restart(-1)
        return super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds what concerns the edits to the logs, and a row to the history."""
        row: dict[str, Any] = {"step": self.state.global_step, "epoch": self.state.epoch}
        if "loss" in logs and self._plain_loss is not None:
            logs.update(self._measure(logs["loss"]))
            row.update(logs, gates=self._gate_values())
            self.history.append(row)
        elif "eval_loss" in logs:
            self.history.append({**row, "eval_loss": logs["eval_loss"]})
        super().log(logs, start_time)

    def _measure(self, objective: float) -> dict[str, float]:
        assert self._plain_loss is not None
        assert self.optimizer is not None
        steps = max(1, self.state.global_step - self._plain_since)
        loss = self.accelerator.reduce(self._plain_loss, "mean").item() / steps
        self._plain_loss, self._plain_since = None, self.state.global_step
        offset, scale = self.objective.weights(self.progress())
        opened = self.edits.count_open()
        rates = {group["params"][0].data_ptr(): group["lr"] for group in self.optimizer.param_groups}
        measured = {
            "loss": loss,
            "objective": objective,
            "penalty": self.objective.penalty(self.edits, self.progress()).item(),
            "lambda_offset": offset,
            "lambda_scale": scale,
            "open_offset": float(opened["offset"][0]),
            "open_scale": float(opened["scale"][0]),
            "learning_rate": rates[self.edits.vector_parameters()[0].data_ptr()],
        }
        gates = self.edits.gate_parameters()
        if gates:
            measured["gate_learning_rate"] = rates[gates[0].data_ptr()]
        return measured

    def _gate_values(self) -> list[dict[str, list[float]]]:
        values = []
        with torch.no_grad():
            for edit in self.edits.module:
                values.append({k: [round(v, 4) for v in g.tolist()] for k, g in edit.gates().items()})
        return values

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        if self.args.should_save:
            self.edits.save_pretrained(self.args.output_dir if output_dir is None else output_dir)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        load_tensors(self.edits, resume_from_checkpoint)
        state = TrainerState.load_from_json(str(Path(resume_from_checkpoint) / "trainer_state.json"))
        if self.history.path is not None and self.history.path.is_file():
            self.history.rows = History.read(self.history.path).rows
        self.history.restart(state.global_step)
        self._plain_since = state.global_step

    def _load_best_model(self) -> None:
        assert self.state.best_model_checkpoint is not None
        load_tensors(self.edits, self.state.best_model_checkpoint)


class EditProgress(ProgressCallback):  # type: ignore[misc]
    """transformers' bar, with the loss and the open gates beside it instead of a line a log."""

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Shows the latest loss, validation loss and open gates."""
        if state.is_world_process_zero and self.training_bar is not None and logs is not None:
            shown = {k: f"{logs[k]:.3g}" for k in ("loss", "open_offset", "open_scale", "eval_loss") if k in logs}
            self._shown = {**getattr(self, "_shown", {}), **shown}
            self.training_bar.set_postfix(self._shown, refresh=False)

    def on_prediction_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        eval_dataloader: Any = None,
        **kwargs: Any,
    ) -> None:
        """Shows a second bar for a validation set that takes longer than a moment."""
        if state.is_world_process_zero and eval_dataloader is not None:
            bar = getattr(self, "prediction_bar", None)
            if bar is None:
                total = len(eval_dataloader)
                bar = tqdm(total=total, desc="validating", leave=False, delay=5, dynamic_ncols=True)
                self.prediction_bar = bar
            bar.update(1)


@contextmanager
def _accepted_for_training(model: nn.Module) -> Iterator[None]:
    """Lets a quantized base pass the Trainer's check, which knows only PEFT's adapters as trainable parts."""
    name = "_hf_peft_config_loaded"
    if not getattr(model, "is_quantized", False):
        yield
        return
    had = name in vars(model)
    before = getattr(model, name, False)
    setattr(model, name, True)
    try:
        yield
    finally:
        if had:
            setattr(model, name, before)
        else:
            delattr(model, name)
