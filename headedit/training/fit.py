"""``headedit.fit``: trains the edits on a few hundred examples by a named recipe."""

import functools
import time
from collections.abc import Iterable
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from transformers import EarlyStoppingCallback, PrinterCallback, TrainingArguments, set_seed

from headedit.edits import HeadEdits
from headedit.edits.files import check_writable
from headedit.errors import HeadEditError
from headedit.loading import load_tokenizer
from headedit.specs.numbers import text_config
from headedit.training.encoding import Encoded, PadRight, encode
from headedit.training.recipes import Jola, make_recipe
from headedit.training.run import Run
from headedit.training.trainer import HeadEditTrainer

CHECKPOINTS = "checkpoints"


def fit(
    edits: HeadEdits,
    train: Iterable[Any],
    valid: Iterable[Any] | None = None,
    *,
    output_dir: "str | PathLike[str]",
    recipe: str = "jola",
    seed: int = 0,
    tokenizer: Any = None,
    max_length: int | None = None,
    progress: bool = True,
    **overrides: Any,
) -> Run:
    """Trains edits in place and saves them, with the history of the run.

    Args:
        edits: the handle; the base model stays as it is.
        train: examples: (prompt, response) pairs, records with such fields, or records of ``input_ids`` and
            ``labels``; a list or a ``datasets.Dataset``.
        valid: the same, for early stopping on the plain loss; the edits of the best epoch are kept. Without
            it the run goes to its end and the last edits are kept.
        output_dir: gets the edits, ``history.jsonl``, ``run.json`` and ``checkpoints/``.
        recipe: the name of a recipe, see ``headedit.training.recipes``.
        seed: of the order of examples and the gates' noise; the same seed gives the same edits.
        tokenizer: by default the one at the model's own name or path, if texts are given.
        max_length: examples of more tokens are left out and reported; by default the model's context.
        progress: show bars.
        overrides: fields of the recipe, such as ``epochs=5`` or ``vector_lr=1e-2``.

    Returns:
        The run. The model is in the mode, train or eval, that it was in before.

    Raises:
        HeadEditError: a set is empty or of another form, the recipe or a field of it is not known, the
            edits are detached, or the folder cannot be written.
    """
    chosen = make_recipe(recipe, overrides)
    if not edits.attached:
        raise HeadEditError("These edits are detached from their model; attach or load them again to train.")
    folder = check_writable(output_dir)
    train, valid = list(train), None if valid is None else list(valid)
    if tokenizer is None and any(not _is_encoded(row) for row in [*train[:1], *(valid or [])[:1]]):
        tokenizer = load_tokenizer(getattr(edits.model.config, "_name_or_path", ""))
    length = getattr(text_config(edits.model), "max_position_embeddings", None) if max_length is None else max_length
    encoding = functools.partial(encode, tokenizer=tokenizer, max_length=length, progress=progress)
    train_rows = encoding(train, name="training")
    valid_rows = None if valid is None else encoding(valid, name="validation")
    folder.mkdir(parents=True, exist_ok=True)
    set_seed(seed)
    trainer = _trainer(edits, chosen, train_rows, valid_rows, folder, seed, tokenizer, progress)
    was_training = edits.model.training
    started = time.perf_counter()
    try:
        trainer.train()
    finally:
        edits.model.train(was_training)
    kept = trainer.kept_step()
    trainer.history.append({"step": kept, "kept": True})
    edits.save_pretrained(folder)
    opened = edits.count_open()
    record = {
        "recipe": recipe,
        "settings": vars(chosen),
        "seed": seed,
        "base_model": getattr(edits.model.config, "_name_or_path", ""),
        "train_examples": len(train_rows),
        "valid_examples": len(valid_rows or []),
        "steps": trainer.state.global_step,
        "kept_step": kept,
        "best_eval_loss": trainer.state.best_metric,
        "open": {kind: {"open": n, "of": total} for kind, (n, total) in opened.items()},
        "seconds": round(time.perf_counter() - started, 2),
    }
    run = Run(folder, trainer.history, record, edits)
    run.save()
    return run


def _trainer(
    edits: HeadEdits,
    recipe: Jola,
    train: list[Encoded],
    valid: list[Encoded] | None,
    folder: Path,
    seed: int,
    tokenizer: Any,
    progress: bool,
) -> HeadEditTrainer:
    steps_an_epoch = -(-len(train) // recipe.batch_size)
    stops = valid is not None
    arguments = TrainingArguments(
        output_dir=str(folder / CHECKPOINTS),
        num_train_epochs=recipe.epochs,
        per_device_train_batch_size=recipe.batch_size,
        per_device_eval_batch_size=4 * recipe.batch_size,
        learning_rate=recipe.vector_lr,
        lr_scheduler_type=recipe.lr_schedule,
        warmup_steps=round(recipe.warmup_epochs * steps_an_epoch),
        adam_epsilon=recipe.adam_epsilon,
        weight_decay=0.0,
        max_grad_norm=recipe.max_grad_norm,
        eval_strategy="epoch" if stops else "no",
        save_strategy="epoch" if stops else "no",
        save_total_limit=1,
        load_best_model_at_end=stops,
        metric_for_best_model="eval_loss" if stops else None,
        greater_is_better=False if stops else None,
        logging_steps=max(1, steps_an_epoch // 5),
        prediction_loss_only=True,
        remove_unused_columns=False,
        dataloader_pin_memory=torch.cuda.is_available(),
        report_to=[],
        seed=seed,
        disable_tqdm=not progress,
    )
    pad = getattr(tokenizer, "pad_token_id", None)
    trainer = HeadEditTrainer(
        edits,
        objective=recipe.objective(),
        gate_learning_rate=recipe.gate_lr,
        history_dir=folder,
        args=arguments,
        train_dataset=train,
        eval_dataset=valid,
        data_collator=PadRight(pad if pad is not None else 0),
        callbacks=[EarlyStoppingCallback(recipe.patience)] if stops and recipe.patience is not None else None,
    )
    if not progress:
        trainer.remove_callback(PrinterCallback)  # which prints every log where there is no bar
    return trainer


def _is_encoded(row: Any) -> bool:
    return isinstance(row, dict) and "input_ids" in row
