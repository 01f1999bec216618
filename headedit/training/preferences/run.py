"""Runs LoFiT by DPO: TRL's trainer with the edits, twice; the reference of each stage is the model at its start."""

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml
from torch import nn

from headedit.data.formats import check_text
from headedit.data.rows import Vocabulary
from headedit.data.sources import read_rows
from headedit.edits import HeadEdits, attach
from headedit.edits.gate_set import GateIndex, all_gates, freeze_gates
from headedit.errors import HeadEditError
from headedit.io.files import check_writable, write_atomically
from headedit.io.folders import check_free
from headedit.io.optional import import_optional
from headedit.runs.history import History
from headedit.training.loop.trainer import HeadEditMixin
from headedit.training.preferences.config import PreferenceConfig
from headedit.training.recipes.jola import add_noise
from headedit.training.recipes.lofit import ScaleNorm

logger = logging.getLogger(__name__)

_TEXTS = ("prompt", "chosen", "rejected")


def train_preferences(config: PreferenceConfig, *, base: nn.Module | None = None, progress: bool = True) -> HeadEdits:
    """Trains LoFiT's edits on preferences, and saves them.

    The output folder gets the edits with the chosen heads alone, ``history.jsonl``, ``dpo.json`` with the chosen heads
    and their scores, and ``dpo.yaml``, with which the run can be repeated. A run that was stopped cannot be resumed:
    it begins again, in an empty folder.

    Args:
        config: the run.
        base: the base model, if it is already loaded.
        progress: show bars.

    Returns:
        The handle of the edits, attached to the model.

    Raises:
        HeadEditError: a file cannot be read, every pair of one is too long, the output folder holds something, TRL is
            missing or refuses the arguments, the tokenizer has nothing to pad with, or the model has fewer heads than
            are to be kept.
    """
    if config.output is None:
        raise HeadEditError("There is no output folder: give output=..., or --output.")
    folder = check_writable(config.output)
    check_free(folder)
    import_optional("trl", "DPO")
    train = read_pairs(config.train)
    valid = None if config.valid is None else read_pairs(config.valid)
    tokenizer = config.model.load_tokenizer()
    train = _fitting(train, tokenizer, config.max_length, config.train)
    valid = None if valid is None else _fitting(valid, tokenizer, config.max_length, str(config.valid))
    model = config.model.load() if base is None else base
    _set_padding(tokenizer, model)
    folder.mkdir(parents=True, exist_ok=True)
    common: dict[str, Any] = {"config": config, "tokenizer": tokenizer, "train": train, "valid": valid}
    common |= {"folder": folder, "progress": progress}
    edits = attach(model)
    try:
        scales = [gate for gate in all_gates(edits.module) if gate.vector == "scale"]
        if config.heads > len(scales):
            raise HeadEditError(f"heads: found {config.heads}, expected 1 to {len(scales)}.")
        add_noise(edits, config.init_std, config.seed)
        freeze_gates(edits.module, scales)
        objective = ScaleNorm(config.select_lambda)
        history = _stage(edits, "select", config.select_lr, objective=objective, **common)
        norms = [edit.vectors["scale"].detach().norm(dim=-1).tolist() for edit in edits.module]
    finally:
        edits.detach()
    ranked = sorted(scales, key=lambda gate: norms[gate.site][gate.head], reverse=True)[: config.heads]
    edits = attach(model)
    add_noise(edits, config.init_std, config.seed + 1)
    freeze_gates(edits.module, [GateIndex(gate.site, "offset", gate.head) for gate in ranked])
    _stage(edits, "edit", config.edit_lr, history=history, **common)
    edits.save_pretrained(folder, hardened=True)
    chosen = [[edits.sites[gate.site].layer, gate.head, norms[gate.site][gate.head]] for gate in ranked]
    record = {"heads": chosen, "pairs": len(train), "seed": config.seed, "beta": config.beta}
    write_atomically(folder / "dpo.json", (json.dumps(record, indent=2) + "\n").encode())
    write_atomically(folder / "dpo.yaml", yaml.safe_dump(asdict(config), sort_keys=False).encode())
    return edits


def read_pairs(source: str) -> list[dict[str, str]]:
    """The records of ``prompt``, ``chosen`` and ``rejected`` in a file.

    Raises:
        HeadEditError: there are none, or one is of another form or has the same text twice.
    """
    rows = []
    for row in read_rows(source):
        if row.fault is not None:
            raise HeadEditError(row.fault)
        value = row.value
        if not isinstance(value, Mapping) or not all(isinstance(value.get(name), str) for name in _TEXTS):
            raise HeadEditError(f"{row.where}: expected the texts prompt, chosen and rejected.")
        for name in _TEXTS:
            check_text(value[name], f"{row.where}: the field '{name}'")
        if value["chosen"] == value["rejected"]:
            raise HeadEditError(f"{row.where}: chosen and rejected are the same text, so neither is preferred.")
        rows.append({name: value[name] for name in _TEXTS})
    if not rows:
        raise HeadEditError(f"{source}: holds no records.")
    return rows


def _fitting(pairs: list[dict[str, str]], tokenizer: Any, longest: int, source: str) -> list[dict[str, str]]:
    """The pairs of which both responses fit; TRL would cut the others, perhaps down to the same text."""

    def tokens(pair: dict[str, str]) -> int:
        texts = [pair["prompt"] + pair[name] for name in ("chosen", "rejected")]
        return max(map(len, tokenizer(texts)["input_ids"])) + 1  # with the end-of-text

    lengths = [tokens(pair) for pair in pairs]
    fitting = [pair for pair, length in zip(pairs, lengths, strict=True) if length <= longest]
    if len(fitting) < len(pairs):
        said = (
            f"{source}: {len(pairs) - len(fitting)} of {len(pairs)} pairs have more than max_length={longest} tokens, "
            f"the longest {max(lengths)}"
        )
        if not fitting:
            raise HeadEditError(f"{said}; raise max_length.")
        logger.warning("%s; they are left out.", said)
    return fitting


def _set_padding(tokenizer: Any, model: nn.Module) -> None:
    """Gives a tokenizer whose padding the model cannot read another token for it."""
    vocabulary = Vocabulary.of(model)
    if tokenizer.pad_token is None or not vocabulary.has(tokenizer.pad_token_id):
        if not vocabulary.has(tokenizer.eos_token_id):
            raise HeadEditError(
                "The tokenizer has no padding token and no end-of-text that the model has, and DPO pads its batches. "
                "Give it one, and save it next to the model: tokenizer.pad_token = ..."
            )
        tokenizer.pad_token = tokenizer.eos_token


def _stage(
    edits: HeadEdits,
    name: str,
    rate: float,
    *,
    config: PreferenceConfig,
    tokenizer: Any,
    train: list[dict[str, str]],
    valid: list[dict[str, str]] | None,
    folder: Path,
    progress: bool,
    objective: ScaleNorm | None = None,
    history: History | None = None,
) -> History:
    """Trains the vectors whose gates are open; returns the history with the rows of this stage."""
    trl, datasets = import_optional("trl", "DPO"), import_optional("datasets", "DPO")
    trainer_class: Any = type("EditDPOTrainer", (HeadEditMixin, trl.DPOTrainer), {})
    on_cpu = next(edits.model.parameters()).device.type == "cpu"
    options: dict[str, Any] = {
        "output_dir": str(folder),
        "learning_rate": rate,
        "lr_scheduler_type": "linear",
        "num_train_epochs": config.epochs,
        "per_device_train_batch_size": min(config.batch_size, len(train)),
        "beta": config.beta,
        "max_length": config.max_length,
        "precompute_ref_log_probs": True,
        "eval_strategy": "no" if valid is None else "epoch",
        "save_strategy": "no",
        "logging_strategy": "epoch",
        "report_to": [],
        "seed": config.seed,
        "bf16": False,
        "gradient_checkpointing": False,
        "use_cpu": on_cpu,
        "disable_tqdm": not progress,
        **config.training,
    }
    try:
        arguments = trl.DPOConfig(**options)
    except (ValueError, ImportError, TypeError, KeyError) as error:
        raise HeadEditError(f"training: TRL refuses these arguments: {error}") from None
    more: dict[str, Any] = {"history_dir": folder}
    if history is not None:
        more = {"history": history, "first_step": max((row["step"] for row in history.rows), default=0)}
    trainer = trainer_class(
        edits,
        args=arguments,
        train_dataset=datasets.Dataset.from_list(train),
        eval_dataset=None if valid is None else datasets.Dataset.from_list(valid),
        processing_class=tokenizer,
        objective=objective,
        stage=name,
        **more,
    )
    trainer.train()
    found: History = trainer.history
    return found
