"""``HeadEditTrainer``: transformers' Trainer for edits, with learning rates of their own, a penalty and a history.

What it adds is in ``HeadEditMixin``, which can also be put before any other Trainer, such as TRL's ``SFTTrainer``.
"""

from collections.abc import Sequence
from contextlib import nullcontext
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
from headedit.training.loop.gradients import check_gradients
from headedit.training.loop.nan_guard import NanGuard
from headedit.training.loop.objective import Objective, Penalty
from headedit.training.loop.policy import compares_policies, reference_of_start
from headedit.training.loop.progress import EditProgress
from headedit.training.loop.response_loss import ScoresResponses
from headedit.training.loop.saving import SavesEdits
from headedit.training.loop.schedules import WITHOUT_WARMUP, LRSchedule, Moment, WarmUp, lr_factor
from headedit.training.loop.sharding import learning_rate, refuse_zero3
from headedit.training.loop.tensor_parallel import SharesLayers, with_optimizer_checkpoints
from headedit.training.loop.token_loss import choose_loss, is_normalised, router_loss, token_loss
from headedit.training.processes import check_together
from headedit.training.trainable import edits_to_train


class HeadEditMixin(ScoresResponses, SavesEdits, SharesLayers):
    """Makes any transformers Trainer learn the edits on a model.

    Put it before the Trainer: ``class EditSFTTrainer(HeadEditMixin, trl.SFTTrainer): ...``. It adds seven things:

    - gates and offsets can have learning rates of their own;
    - the penalty of an ``Objective`` is added to the loss in training, never in evaluation;
    - checkpoints hold the edits, what else is trainable, such as LoRA, and the optimiser state, not the base model;
    - an incomplete checkpoint is never resumed from;
    - every logged step becomes a row of ``history``, which is also written to ``history.jsonl``;
    - a loss that is NaN or infinite stops the run, with the last good edits on disk;
    - before a Trainer of TRL that compares the log-probabilities of passes (DPO, KTO, GRPO, RLOO), gates are
      deterministic; the reference is a frozen copy of the edits as they are when it is made, which checkpoints hold.

    Args:
        edits: the handle of the edits on the model to train.
        objective: the penalty; None for no penalty.
        gate_learning_rate: peak learning rate of the gate logits; None for ``args.learning_rate``, which is that of
            the vectors.
        offset_learning_rates: peak learning rate of the offsets of each site, [sites]; None for
            ``args.learning_rate``.
        lr_schedule: a schedule of all learning rates by its name in recipes, such as ``exponential``, instead of
            ``args.lr_scheduler_type``; ``args.warmup_steps`` acts with it.
        history_dir: folder for ``history.jsonl``; None for ``args.output_dir``.
        history: a history to continue, as the second stage of a run does, instead of ``history_dir``.
        first_step: number of steps that earlier stages took.
        stage: name of the stage, a key of its rows in the history; None for no such key.
        kwargs: the arguments of the Trainer that it is put before, without ``model``.
    """

    def __init__(
        self,
        edits: HeadEdits,
        *,
        objective: Penalty | None = None,
        gate_learning_rate: float | None = None,
        offset_learning_rates: Sequence[float] | None = None,
        lr_schedule: LRSchedule | None = None,
        history_dir: Path | None = None,
        history: History | None = None,
        first_step: int = 0,
        stage: str | None = None,
        **kwargs: Any,
    ) -> None:
        edits = edits_to_train(edits)
        trainable = [parameter for parameter in edits.module.parameters() if parameter.requires_grad]
        whole = with_optimizer_checkpoints(edits.model, kwargs.get("args"))
        with accepted_for_training(edits.model), reference_of_start(self, edits, kwargs), whole:
            super().__init__(model=edits.model, **kwargs)
        for parameter in trainable:  # PEFT, which a Trainer's peft_config applies, freezes all but its own
            parameter.requires_grad_(True)
        self.edits = edits
        choose_loss(self, HeadEditMixin, ScoresResponses)
        self.objective: Penalty = Objective() if objective is None else objective
        self.gate_learning_rate = self.args.learning_rate if gate_learning_rate is None else gate_learning_rate
        self.offset_learning_rates = offset_learning_rates
        self.lr_schedule = lr_schedule
        folder = Path(self.args.output_dir if history_dir is None else history_dir)
        if history is None:
            history = History(folder / HISTORY_FILE if self.is_world_process_zero() else None)
        self.history, self.first_step, self.stage = history, first_step, stage
        self._guard = NanGuard(edits)
        self._throughput = self._new_throughput()
        self._eval_losses: list[float] = []
        self._plain_loss: Tensor | None = None
        self._plain_since, self._has_learnt = 0, False
        if self.pop_callback(ProgressCallback) is not None:
            self.add_callback(EditProgress(stage))

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Makes the optimiser: a group per learning rate of the vectors, one for gates, one for all other parameters.

        Gates have no weight decay.
        """
        made: torch.optim.Optimizer | None = getattr(self, "optimizer", None)
        ours = {id(p) for p in self.edits.module.parameters()}
        if made is not None and not any(id(p) in ours for group in made.param_groups for p in group["params"]):
            raise HeadEditError(
                "The optimiser that was given holds no parameter of the edits, so they would not be trained. Give one "
                "made of edits.module.parameters(), or none."
            )
        if made is None:
            gates = self.edits.gate_parameters()
            others = [p for p in self.model.parameters() if p.requires_grad and id(p) not in ours]
            decay = self.args.weight_decay
            groups = [
                *({"params": ps, "weight_decay": decay, "lr": lr} for (_, lr), ps in self._vectors_by_rate().items()),
                {"params": gates, "weight_decay": 0.0, "lr": self.gate_learning_rate},
                {"params": others, "weight_decay": decay},
            ]
            cls, kwargs = self.get_optimizer_cls_and_kwargs(self.args, self.model)
            self.optimizer = made = cls([group for group in groups if group["params"]], **kwargs)
        assert made is not None
        return made

    def _vectors_by_rate(self) -> dict[tuple[str, float], list[nn.Parameter]]:
        usual = self.args.learning_rate
        rates = [usual] * len(self.edits.sites) if self.offset_learning_rates is None else self.offset_learning_rates
        grouped: dict[tuple[str, float], list[nn.Parameter]] = {}
        for edit, offset_rate in zip(self.edits.module, rates, strict=True):
            for vector in edit.vectors:
                rate = offset_rate if vector == "offset" else usual
                grouped.setdefault((vector, rate), []).append(edit.vectors[vector])
        return grouped

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> Any:
        """Makes the scheduler of ``lr_schedule``; without it, the one that ``args.lr_scheduler_type`` names."""
        made: Any = getattr(self, "lr_scheduler", None)
        if made is not None:
            return made
        chosen = self.optimizer if optimizer is None else optimizer
        assert chosen is not None
        warmup = self.args.get_warmup_steps(num_training_steps)
        factor = lr_factor(self.args.lr_scheduler_type.value if self.lr_schedule is None else self.lr_schedule, warmup)
        if factor is not None:
            self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(chosen, factor)
            self._created_lr_scheduler = True
        elif warmup and self.args.lr_scheduler_type in WITHOUT_WARMUP:
            self.add_callback(WarmUp([group["lr"] for group in chosen.param_groups], warmup))
        return super().create_scheduler(num_training_steps, optimizer)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The loss on the response tokens, in nats per token; in training with router losses and penalty added.

        It is the same for a batch that is split into parts by gradient accumulation, whatever the model does with
        ``num_items_in_batch``; see ``token_loss``. A Trainer with a loss of its own keeps it.
        """
        whole = return_outputs or self.compute_loss_func is token_loss  # TRL's with their own loss give no outputs
        found = super().compute_loss(model, inputs, return_outputs=whole, num_items_in_batch=num_items_in_batch)
        loss, *outputs = found if whole else (found,)
        if model.training:
            self._throughput.count(inputs)
            steps = self.current_gradient_accumulation_steps
            normalised = is_normalised(self, num_items_in_batch)  # a mean is divided by the steps later
            plain = loss.detach() if normalised else loss.detach() / steps
            self._guard.observe(plain, self.state.global_step + 1)
            self._plain_loss = plain if self._plain_loss is None else self._plain_loss + plain
            penalty = self.objective.penalty(self.edits, self.moment()).to(loss.device)
            if self.compute_loss_func is token_loss:
                penalty = penalty + router_loss(model, outputs[0])
            loss = loss + (penalty / steps if normalised else penalty)
        return (loss, *outputs) if return_outputs else loss

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """One forward and backward pass; after the first, every edited site must have a gradient."""
        loss: Tensor = super().training_step(*args, **kwargs)
        if not self._has_learnt:
            self._has_learnt = True
            if not (self.is_fsdp_enabled or self.is_deepspeed_enabled):
                check_gradients(self.edits)
        return loss

    def moment(self) -> Moment:
        """How far the run has got: steps taken, steps in all, and the validation losses so far."""
        return Moment(self.state.global_step, int(self.state.max_steps), tuple(self._eval_losses))

    def kept_step(self) -> int:
        """After training, the step that the edits are from: of the best checkpoint if it was loaded, else the last."""
        best = self.state.best_model_checkpoint if self.args.load_best_model_at_end else None
        return self.first_step + int(self.state.global_step if best is None else Path(best).name.rpartition("-")[2])

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any) -> Any:
        """Trains the edits; see ``transformers.Trainer.train``.

        Args:
            resume_from_checkpoint: the folder of a checkpoint, or True for the last complete one in ``output_dir``.
            kwargs: the other arguments of ``transformers.Trainer.train``.

        Raises:
            HeadEditError: the loss became NaN or infinite, after which the last good edits are attached and saved;
                there is no complete checkpoint to resume from; a checkpoint cannot be written; or the edits are merged,
                disabled or do not act in the passes, so that nothing would be learnt.
        """
        check_together(self.args.world_size, self.edits.model)
        refuse_zero3(self)
        self.edits.check_trainable()
        self._plain_loss, self._plain_since = None, 0
        self._guard = NanGuard(self.edits, self.other_weights().values())
        self._throughput = self._new_throughput()
        if resume_from_checkpoint is True:
            last = checkpoints.last_complete(Path(self.args.output_dir))
            if last is None:
                raise HeadEditError(f"{self.args.output_dir}: holds no complete checkpoint to resume from.")
            resume_from_checkpoint = str(last)
        if not resume_from_checkpoint:
            self._eval_losses = []
            self.history.restart(self.first_step or -1)
        elif checkpoints.has_ended(Path(resume_from_checkpoint)):
            return self._end_at(resume_from_checkpoint)
        fixed = compares_policies(type(self))
        with differentiable(self.edits.model), self.edits.deterministic_gates() if fixed else nullcontext():
            result = super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)
        self._raise_if_not_finite()
        return result

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds losses, penalty, open gates, speed and memory to the logs, and a row to the history."""
        row: dict[str, Any] = {"step": self.first_step + self.state.global_step, "epoch": self.state.epoch}
        if self.stage is not None:
            row["stage"] = self.stage
        if "loss" in logs and self._plain_loss is not None:
            self._raise_if_not_finite()
            logs.update(self._log_figures(logs["loss"]))
            row.update(logs, gates=self._gate_values())
            self.history.append(row)
            logs.update(self._throughput.read_and_reset())
        elif "eval_loss" in logs:
            self._raise_if_not_finite()
            self._eval_losses.append(logs["eval_loss"])
            self.history.append({**row, "eval_loss": logs["eval_loss"]})
        super().log(logs, start_time)

    def _raise_if_not_finite(self) -> None:
        bad = self._guard.check(self.state.global_step)
        if bad is None:
            return
        self._guard.restore_good()
        folder = self.history.path.parent if self.history.path is not None else Path(self.args.output_dir)
        if self.is_world_process_zero():
            self._save(str(folder))
        raise HeadEditError(
            f"The loss became NaN or infinite at step {self.first_step + bad}, so the run was stopped. The edits of "
            f"step {self.first_step + self._guard.good_step}, the last good ones, are in {folder}. Lower the learning "
            "rates, check the examples of that step, or train in a dtype with a larger range."
        )

    def _log_figures(self, objective: float) -> dict[str, float]:
        assert self._plain_loss is not None
        assert self.optimizer is not None
        steps = max(1, self.state.global_step - self._plain_since)
        loss = self.accelerator.reduce(self._plain_loss, "mean").item() / steps
        self._plain_loss, self._plain_since = None, self.state.global_step
        offset, scale = self.objective.weights(self.moment())
        opened = self.edits.count_open()
        figures = {
            "loss": loss,
            "objective": objective,
            "penalty": self.objective.penalty(self.edits, self.moment()).item(),
            "lambda_offset": offset,
            "lambda_scale": scale,
            "open_offset": float(opened["offset"][0]),
            "open_scale": float(opened["scale"][0]),
            "learning_rate": learning_rate(self.optimizer, self.edits.vector_parameters()[-1], 0),
        }
        gates = self.edits.gate_parameters()
        if gates:
            figures["gate_learning_rate"] = learning_rate(self.optimizer, gates[0], len(self._vectors_by_rate()))
        return figures

    @torch.no_grad()
    def _gate_values(self) -> list[dict[str, list[float]]]:
        by_site = (edit.gate_values().items() for edit in self.edits.module)
        return [{vector: [round(v, 4) for v in gate.tolist()] for vector, gate in gates} for gates in by_site]


class HeadEditTrainer(HeadEditMixin, Trainer):  # type: ignore[misc]
    """A ``transformers.Trainer`` that learns the edits on a model; for its arguments see ``HeadEditMixin``."""
