"""``HeadEditTrainer``: transformers' Trainer for edits, with rates of their own, a penalty and a history.

What it adds is ``HeadEditMixin``, which goes in front of any other Trainer too, such as TRL's ``SFTTrainer``.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer
from transformers.trainer_callback import ProgressCallback

from headedit.edits import HeadEdits
from headedit.errors import HeadEditError
from headedit.hf.quantized import accepted_for_training, differentiable
from headedit.runs.files import HISTORY_FILE
from headedit.runs.history import History
from headedit.training.loop import checkpoints
from headedit.training.loop.nan_guard import FiniteWatch
from headedit.training.loop.objective import Objective, Penalty
from headedit.training.loop.progress import EditProgress
from headedit.training.loop.saving import SavesEdits
from headedit.training.loop.schedules import Moment
from headedit.training.loop.throughput import Throughput


class HeadEditMixin(SavesEdits):
    """Makes a Trainer learn the edits on a model: ``class EditSFTTrainer(HeadEditMixin, trl.SFTTrainer): ...``.

    It adds six things: gates and offsets can have learning rates of their own; the penalty of the ``Objective`` is
    added in training and never in evaluation; checkpoints hold the edits and the optimiser, not the base model; one
    that was not written to its end is never resumed from; every logged step becomes a row of ``history``; and a loss
    that is not finite stops the run with the last good edits on disk.

    Args:
        edits: the handle of the edits on the model to train.
        objective: the penalty; by default none.
        gate_learning_rate: learning rate of the gate logits; by default ``args.learning_rate``, that of the vectors.
        offset_learning_rates: learning rate of the offsets, one a site; by default ``args.learning_rate``.
        lr_factor: course of all learning rates, factor by step, in place of ``args.lr_scheduler_type``.
        history_dir: folder for ``history.jsonl``; by default ``args.output_dir``.
        history: rows to go on with, as the second stage of a run does, in place of ``history_dir``.
        first_step: number of steps that the stages before took.
        stage: name of the stage, a key of its rows.
        kwargs: as for the Trainer that it stands in front of, without ``model``.
    """

    def __init__(
        self,
        edits: HeadEdits,
        *,
        objective: Penalty | None = None,
        gate_learning_rate: float | None = None,
        offset_learning_rates: Sequence[float] | None = None,
        lr_factor: Callable[[int], float] | None = None,
        history_dir: Path | None = None,
        history: History | None = None,
        first_step: int = 0,
        stage: str | None = None,
        **kwargs: Any,
    ) -> None:
        with accepted_for_training(edits.model):
            super().__init__(model=edits.model, **kwargs)
        self.edits = edits
        self.objective: Penalty = Objective() if objective is None else objective
        self.gate_learning_rate = self.args.learning_rate if gate_learning_rate is None else gate_learning_rate
        self.offset_learning_rates = offset_learning_rates
        self.lr_factor = lr_factor
        folder = Path(self.args.output_dir if history_dir is None else history_dir)
        if history is None:
            history = History(folder / HISTORY_FILE if self.is_world_process_zero() else None)
        self.history, self.first_step, self.stage = history, first_step, stage
        self._watch = FiniteWatch(edits)
        self._throughput = Throughput(self.args.world_size, self.args.device)
        self._eval_losses: list[float] = []
        self._plain_loss: Tensor | None = None
        self._plain_since = 0
        if self.pop_callback(ProgressCallback) is not None:
            self.add_callback(EditProgress)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """A group for each learning rate of the vectors, one for gates, one for whatever else is trainable.

        There is no weight decay on gates.
        """
        made: torch.optim.Optimizer | None = getattr(self, "optimizer", None)
        if made is None:
            gates = self.edits.gate_parameters()
            ours = {id(p) for p in [*self.edits.vector_parameters(), *gates]}
            others = [p for p in self.model.parameters() if p.requires_grad and id(p) not in ours]
            decay = self.args.weight_decay
            groups = [
                *({"params": ps, "weight_decay": decay, "lr": lr} for lr, ps in self._vectors_by_rate().items()),
                {"params": gates, "weight_decay": 0.0, "lr": self.gate_learning_rate},
                {"params": others, "weight_decay": decay},
            ]
            cls, kwargs = self.get_optimizer_cls_and_kwargs(self.args, self.model)
            self.optimizer = made = cls([group for group in groups if group["params"]], **kwargs)
        assert made is not None
        return made

    def _vectors_by_rate(self) -> dict[float, list[nn.Parameter]]:
        usual = self.args.learning_rate
        rates = [usual] * len(self.edits.sites) if self.offset_learning_rates is None else self.offset_learning_rates
        grouped: dict[float, list[nn.Parameter]] = {}
        for edit, offset_rate in zip(self.edits.module, rates, strict=True):
            for vector in edit.vectors:
                grouped.setdefault(offset_rate if vector == "offset" else usual, []).append(getattr(edit, vector))
        return grouped

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> Any:
        """The scheduler of ``lr_factor``, or by the name in the arguments."""
        if self.lr_factor is not None and getattr(self, "lr_scheduler", None) is None:
            chosen = self.optimizer if optimizer is None else optimizer
            assert chosen is not None
            self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(chosen, self.lr_factor)
            self._created_lr_scheduler = True
        return super().create_scheduler(num_training_steps, optimizer)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The plain loss on the response tokens; in training with the penalty added."""
        found = super().compute_loss(
            model, inputs, return_outputs=return_outputs, num_items_in_batch=num_items_in_batch
        )
        loss = found[0] if return_outputs else found
        if model.training:
            self._throughput.count(inputs)
            # transformers divides a mean by the accumulation steps later, and leaves a loss normalised by
            # the tokens of all of them alone: then the penalty and the record take the division here.
            steps = self.current_gradient_accumulation_steps
            whole = self.model_accepts_loss_kwargs and num_items_in_batch is not None
            plain = loss.detach() if whole else loss.detach() / steps
            self._watch.observe(plain, self.state.global_step + 1)
            self._plain_loss = plain if self._plain_loss is None else self._plain_loss + plain
            penalty = self.objective.penalty(self.edits, self.moment()).to(loss.device)
            loss = loss + (penalty / steps if whole else penalty)
        return (loss, *found[1:]) if return_outputs else loss

    def moment(self) -> Moment:
        """Where the run is."""
        return Moment(self.state.global_step, int(self.state.max_steps), tuple(self._eval_losses))

    def kept_step(self) -> int:
        """The step that the edits are of after training: the best one that was loaded, or the last."""
        best = self.state.best_model_checkpoint if self.args.load_best_model_at_end else None
        return self.first_step + int(self.state.global_step if best is None else Path(best).name.rpartition("-")[2])

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any) -> Any:
        """Trains the edits; see ``transformers.Trainer.train``.

        Args:
            resume_from_checkpoint: the folder of a checkpoint, or True for the last whole one in ``output_dir``.
            kwargs: as there.

        Raises:
            HeadEditError: the loss became NaN or infinite; the last good edits are attached and saved. Or there is no
                checkpoint, or one cannot be written.
        """
        self._plain_loss, self._plain_since = None, 0
        self._watch = FiniteWatch(self.edits)
        self._throughput = Throughput(self.args.world_size, self.args.device)
        if resume_from_checkpoint is True:
            last = checkpoints.last_whole(Path(self.args.output_dir))
            if last is None:
                raise HeadEditError(f"{self.args.output_dir}: holds no whole checkpoint to resume from.")
            resume_from_checkpoint = str(last)
        if not resume_from_checkpoint:
            self._eval_losses = []
            self.history.restart(self.first_step or -1)
        elif checkpoints.has_ended(Path(resume_from_checkpoint)):
            return self._end_at(resume_from_checkpoint)
        with differentiable(self.edits.model):
            result = super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)
        self._stop_unless_finite()
        return result

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds what concerns the edits to the logs, and a row to the history."""
        row: dict[str, Any] = {"step": self.first_step + self.state.global_step, "epoch": self.state.epoch}
        if self.stage is not None:
            row["stage"] = self.stage
        if "loss" in logs and self._plain_loss is not None:
            self._stop_unless_finite()
            logs.update(self._measure(logs["loss"]))
            row.update(logs, gates=self._gate_values())
            self.history.append(row)
            logs.update(self._throughput.read())
        elif "eval_loss" in logs:
            self._stop_unless_finite()
            self._eval_losses.append(logs["eval_loss"])
            self.history.append({**row, "eval_loss": logs["eval_loss"]})
        super().log(logs, start_time)

    def _stop_unless_finite(self) -> None:
        bad = self._watch.check(self.state.global_step)
        if bad is None:
            return
        self._watch.restore()
        folder = self.history.path.parent if self.history.path is not None else Path(self.args.output_dir)
        if self.is_world_process_zero():
            self.edits.save_pretrained(folder, card=False)
        raise HeadEditError(
            f"The loss became NaN or infinite at step {self.first_step + bad}; the run is stopped. The edits of step "
            f"{self.first_step + self._watch.good_step}, the last good ones, are in {folder}. Lower the learning "
            "rates, look at the examples of that step, or train in a wider dtype."
        )

    def _measure(self, objective: float) -> dict[str, float]:
        assert self._plain_loss is not None
        assert self.optimizer is not None
        steps = max(1, self.state.global_step - self._plain_since)
        loss = self.accelerator.reduce(self._plain_loss, "mean").item() / steps
        self._plain_loss, self._plain_since = None, self.state.global_step
        offset, scale = self.objective.weights(self.moment())
        opened = self.edits.count_open()
        rates = {id(p): group["lr"] for group in self.optimizer.param_groups for p in group["params"]}
        measured = {
            "loss": loss,
            "objective": objective,
            "penalty": self.objective.penalty(self.edits, self.moment()).item(),
            "lambda_offset": offset,
            "lambda_scale": scale,
            "open_offset": float(opened["offset"][0]),
            "open_scale": float(opened["scale"][0]),
            "learning_rate": rates[id(self.edits.vector_parameters()[-1])],
        }
        gates = self.edits.gate_parameters()
        if gates:
            measured["gate_learning_rate"] = rates[id(gates[0])]
        return measured

    def _gate_values(self) -> list[dict[str, list[float]]]:
        values = []
        with torch.no_grad():
            for edit in self.edits.module:
                values.append({k: [round(v, 4) for v in g.tolist()] for k, g in edit.gates().items()})
        return values


class HeadEditTrainer(HeadEditMixin, Trainer):  # type: ignore[misc]
    """A ``transformers.Trainer`` that learns the edits on a model and nothing else; see ``HeadEditMixin``."""
