"""``tune``: trains an adapter of PEFT as a config says, from the data on disk to the saved adapter."""

import json
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PrinterCallback, Trainer, TrainingArguments, set_seed
from transformers.integrations import TensorBoardCallback
from transformers.trainer_callback import ProgressCallback

from headedit.data import Data
from headedit.data.batches import PadRight
from headedit.data.loading import load_data
from headedit.data.losses import example_losses
from headedit.data.rows import Vocabulary
from headedit.errors import HeadEditError
from headedit.hf.config import context_length, text_config
from headedit.hf.models import check_causal_lm
from headedit.io.files import check_writable, write_atomically
from headedit.io.optional import import_optional
from headedit.training.config.trackers import check_trackers, tell_trackers
from headedit.training.loop.checkpoints import last_complete, mark_complete, removed_on_failure
from headedit.training.loop.interrupts import StopOnSignal
from headedit.training.loop.progress import EditProgress
from headedit.training.sparse.sparse_tuning import SparseTuning
from headedit.training.tuning.config import TUNE_YAML, TuneConfig
from headedit.training.tuning.folder import (
    CHECKPOINTS,
    DATA,
    HISTORY,
    LOGS,
    PARTIAL,
    RECORD,
    check_folder,
    read_record,
    remove_run,
    write_json,
)
from headedit.training.tuning.methods import add_adapter, quiet
from headedit.training.tuning.rows import LearnsPrompts


@dataclass(frozen=True)
class Tuned:
    """A finished run.

    Fields:
        model: PEFT's model with the trained adapter, in eval mode.
        tokenizer: the base model's.
        folder: where adapter and record are.
        record: method, settings, steps, losses on held-out examples in nats per token, and with IST or RST the layers
            with how often each was trained and its score.
    """

    model: Any
    tokenizer: Any
    folder: Path
    record: dict[str, Any]

    @property
    def inner(self) -> nn.Module:
        """The causal LM itself, in which the adapter acts."""
        found: nn.Module = self.model.get_base_model()
        return found


def tune(
    config: TuneConfig,
    *,
    resume: bool = False,
    overwrite: bool = False,
    progress: bool = True,
    ready: Callable[[Any, Data], None] | None = None,
) -> Tuned:
    """Trains an adapter, and saves it as ``PeftModel.from_pretrained`` reads it.

    Args:
        config: the run; it must have an output folder.
        resume: resume the run that was stopped in the output folder, or return the finished one.
        overwrite: remove the run in the output folder first.
        progress: show progress bars.
        ready: called with PEFT's model and the data before training starts.

    Raises:
        HeadEditError: the output folder holds another run, the data cannot be read, the model cannot be loaded or
            adapted, transformers refuses the arguments, or the loss becomes NaN or infinite.
        KeyboardInterrupt: Ctrl-C or SIGTERM; the step in which it arrived is saved, and ``resume=True`` continues from
            there.
    """
    import_optional("peft", "headedit tune")
    if config.output is None:
        raise HeadEditError("There is no output folder: give output=..., or --output.")
    folder = check_writable(config.output)
    check_folder(folder, config, resume=resume, overwrite=overwrite)
    config.check_device()
    check_trackers(config.logging)
    tell_trackers(config.logging)
    finished = read_record(folder) if resume else None
    arguments = _arguments(config, folder, validated=config.data.valid is not None, progress=progress)
    tokenizer = config.model.load_tokenizer()
    if finished is not None:
        return _finished(config, folder, tokenizer, finished)
    loaded = config.model.load_config()
    found = context_length(loaded)
    data = load_data(
        config.data,
        tokenizer,
        context=None if found is None else int(found),
        vocabulary=getattr(text_config(loaded), "vocab_size", None),
        progress=progress,
    )
    model: Any = config.model.load()
    check_causal_lm(model, "headedit tune")
    pad = Vocabulary.of(model).padding(tokenizer)
    set_seed(config.seed)
    model = add_adapter(model, config.method)
    if ready is not None:
        ready(model, data)
    if overwrite:
        remove_run(folder)
    if not resume or not (folder / TUNE_YAML).is_file():
        config.save(folder)
        write_json(folder / DATA, data.report)
    started = time.perf_counter()
    trainer, steps = _train(config, model, data, pad, arguments, resume=resume)
    model.eval()
    record = {
        "method": asdict(config.method),
        "sparse": None if config.sparse is None else asdict(config.sparse),
        "base_model": config.model.name,
        "seed": config.seed,
        "train_examples": len(data.train),
        "trainable_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "steps": steps,
        "kept_step": _kept_step(trainer),
        "best_eval_loss": trainer.state.best_metric,
        "held_out": _held_out(model, data, pad, arguments.per_device_eval_batch_size),
        "layers": _layers(trainer),
        "seconds": round(time.perf_counter() - started, 2),
    }
    _save_adapter(model, folder)
    lines = (json.dumps(row) for row in trainer.state.log_history)
    write_atomically(folder / HISTORY, "".join(f"{line}\n" for line in lines).encode())
    write_json(folder / RECORD, record)
    shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
    return Tuned(model, tokenizer, folder, record)


class TuneTrainer(Trainer):  # type: ignore[misc]
    """transformers' Trainer, which never leaves an incomplete checkpoint that would be resumed from."""

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        folder = Path(self._get_output_dir(trial=trial)) / f"checkpoint-{self.state.global_step}"
        with removed_on_failure(folder):
            super()._save_checkpoint(model, trial)
            mark_complete(folder, [], {})


def _train(
    config: TuneConfig, model: Any, data: Data, pad: int, arguments: TrainingArguments, *, resume: bool
) -> tuple[Trainer, int]:
    """Trains the adapter; returns the Trainer and the number of steps."""
    sparse, stop = None if config.sparse is None else config.sparse.callback(), StopOnSignal()
    learned = LearnsPrompts if config.train_on_inputs else (lambda rows: rows)
    trainer = TuneTrainer(
        model,
        arguments,
        train_dataset=learned(data.train),
        eval_dataset=None if data.valid is None else learned(data.valid),
        data_collator=PadRight(pad),
        callbacks=[callback for callback in (sparse, stop) if callback is not None],
    )
    if arguments.disable_tqdm:
        trainer.remove_callback(PrinterCallback)
    elif trainer.pop_callback(ProgressCallback) is not None:
        trainer.add_callback(EditProgress("tune"))
    for callback in trainer.callback_handler.callbacks:
        if isinstance(callback, TensorBoardCallback) and callback.logging_dir is None:
            callback.logging_dir = str(Path(arguments.output_dir).parent / LOGS)
    last = last_complete(Path(arguments.output_dir)) if resume else None
    try:
        with stop.handling_signals():
            trainer.train(resume_from_checkpoint=None if last is None else str(last))
    finally:
        if sparse is not None:
            sparse.release()
    steps = int(trainer.state.global_step)
    if stop.requested and steps < trainer.state.max_steps:
        raise KeyboardInterrupt(f"stopped after step {steps}, which is saved; continue from there with --resume.")
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    finite = all(torch.isfinite(p).all() for p in model.parameters() if p.requires_grad)
    if not finite or not torch.isfinite(torch.tensor(losses)).all():
        raise HeadEditError(
            "The loss became NaN or infinite, so no adapter is saved. Lower the learning rate, or train in a dtype "
            "with a larger range: --set training.fp16=false --set training.bf16=true."
        )
    return trainer, steps


def _arguments(config: TuneConfig, folder: Path, *, validated: bool, progress: bool) -> TrainingArguments:
    """The arguments of the Trainer: those of the config over those that suit a run of this kind."""
    own: dict[str, Any] = {
        "output_dir": str(folder / CHECKPOINTS),
        "eval_strategy": "epoch" if validated else "no",
        "save_strategy": "epoch",
        "save_total_limit": 2,
        "load_best_model_at_end": validated,
        "remove_unused_columns": False,
        "prediction_loss_only": True,
        "dataloader_pin_memory": torch.cuda.is_available(),
        "report_to": [],
        "seed": config.seed,
        "use_cpu": config.model.device == "cpu",
        "disable_tqdm": not progress,
    }
    given = config.arguments()
    if given.get("gradient_checkpointing"):
        own["gradient_checkpointing_kwargs"] = {"use_reentrant": False}
    try:
        made = TrainingArguments(**{**own, **given})
    except (ValueError, ImportError, TypeError, KeyError) as error:
        raise HeadEditError(f"training: transformers refuses these arguments: {error}") from None
    if made.world_size > 1:
        raise HeadEditError(
            f"headedit tune runs in one process, and this is one of {made.world_size}. Start it without a launcher; "
            "model.device_map=auto spreads a large model over several GPUs."
        )
    if made.n_gpu > 1:
        made._n_gpu = (
            1  # copies of the model on several GPUs, as of DataParallel, have no layers of their own to freeze
        )
    return made


def _held_out(model: Any, data: Data, pad: int, batch_size: int) -> dict[str, Any] | None:
    """The mean loss of the responses of held-out examples with the adapter and without, in nats per token."""
    if data.valid is None:
        return None
    tuned = example_losses(model, data.valid, PadRight(pad), batch_size).mean().item()
    with model.disable_adapter():
        base = example_losses(model, data.valid, PadRight(pad), batch_size).mean().item()
    return {"examples": len(data.valid), "base": base, "tuned": tuned}


def _layers(trainer: Trainer) -> list[dict[str, Any]] | None:
    """How often each layer was trained, and its score, from the callback; None where all are trained."""
    sparse = next((c for c in trainer.callback_handler.callbacks if isinstance(c, SparseTuning)), None)
    if sparse is None:
        return None
    figures = zip(sparse.layers, sparse.times_trained.tolist(), sparse.scores.tolist(), strict=True)
    return [{"layer": layer, "times_trained": times, "score": score} for layer, times, score in figures]


def _kept_step(trainer: Trainer) -> int:
    best = trainer.state.best_model_checkpoint if trainer.args.load_best_model_at_end else None
    return int(trainer.state.global_step if best is None else Path(best).name.rpartition("-")[2])


def _save_adapter(model: Any, folder: Path) -> None:
    """Writes the adapter next to its place, and then moves it there."""
    partial = folder / PARTIAL
    try:
        shutil.rmtree(partial, ignore_errors=True)
        model.save_pretrained(str(partial))
        for file in partial.iterdir():
            os.replace(file, folder / file.name)
        partial.rmdir()
    except OSError as error:
        raise HeadEditError(f"{folder}: the adapter cannot be written ({error.strerror}).") from None


def _finished(config: TuneConfig, folder: Path, tokenizer: Any, record: dict[str, Any]) -> Tuned:
    """The finished run in a folder, with its model loaded again."""
    peft = import_optional("peft", "headedit tune")
    with quiet():
        model = peft.PeftModel.from_pretrained(config.model.load(), str(folder)).eval()
    return Tuned(model, tokenizer, folder, record)
