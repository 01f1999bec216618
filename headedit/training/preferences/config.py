"""``PreferenceConfig``: a DPO run of LoFiT as data, from a file or by the name of one that comes with headedit."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

from headedit.errors import HeadEditError, suggest
from headedit.io import strict
from headedit.io.yaml import read_yaml
from headedit.training.config.model import ModelConfig
from headedit.training.config.names import checked_arguments

_FOLDER = Path(__file__).resolve().parent / "shipped"
_OWN = (
    "learning_rate",
    "num_train_epochs",
    "per_device_train_batch_size",
    "report_to",
    "load_best_model_at_end",
    "save_strategy",
)


@dataclass(frozen=True, kw_only=True)
class PreferenceConfig:
    """LoFiT (Yin, Ye, Durrett, NeurIPS 2024, arXiv 2406.01563) by DPO: scales choose heads, then offsets are learned.

    Fields:
        model: the base model; see ``ModelConfig``.
        train: a file of records with ``prompt``, ``chosen`` and ``rejected``; ``headedit export TASK --preferences``
            writes one.
        valid: the same; None for no validation.
        heads: number of heads to keep.
        beta: β of DPO (Rafailov et al., NeurIPS 2023, arXiv 2305.18290).
        select_lr: peak learning rate of the first stage, which trains scales on all heads.
        select_lambda: λ of its L1 penalty, in nats per pair.
        edit_lr: peak learning rate of the second stage, which trains offsets on the heads with the largest scales.
        epochs: passes over the pairs, in each stage.
        batch_size: pairs per step.
        max_length: the most tokens of a prompt with a response; longer pairs are left out, and a warning counts them.
        init_std: standard deviation of the vectors at the start of each stage.
        training: any other field of ``transformers.TrainingArguments``.
        seed: seed of the order of pairs and of the vectors' start.
        output: folder for the edits, their history and ``dpo.json``; it must be new or empty.
    """

    model: ModelConfig
    train: str
    valid: str | None = None
    heads: int = 32
    beta: float = 0.5
    select_lr: float = 5e-3
    select_lambda: float = 5e-4
    edit_lr: float = 1e-2
    epochs: int = 5
    batch_size: int = 8
    max_length: int = 256
    init_std: float = 1e-3
    training: dict[str, Any] = field(default_factory=dict)
    seed: int = 42
    output: str | None = None

    def __post_init__(self) -> None:
        strict.check(self)
        for name in ("heads", "beta", "select_lr", "edit_lr", "epochs", "batch_size", "max_length"):
            if not getattr(self, name) > 0:
                raise HeadEditError(f"{name}: found {getattr(self, name)}, expected a number above 0.")
        for name in ("select_lambda", "init_std"):
            if not getattr(self, name) >= 0:
                raise HeadEditError(f"{name}: found {getattr(self, name)}, expected 0 or more.")
        for name in self.training:
            if name in _OWN:
                raise HeadEditError(f"training: '{name}' is set by this run; its own fields are those above training.")
        checked_arguments(self.training)
        if self.valid is None and self.training.get("eval_strategy", "no") != "no":
            raise HeadEditError("training: 'eval_strategy' needs validation pairs; give valid.")


def shipped_preferences() -> dict[str, Path]:
    """The DPO runs that come with headedit, by name."""
    return {file.stem: file for file in sorted(_FOLDER.glob("*.yaml"))}


def read_preferences(config: "str | PathLike[str]", overrides: Mapping[str, Any] | None = None) -> PreferenceConfig:
    """Reads a DPO run.

    Args:
        config: a YAML file, or the name of a run that comes with headedit.
        overrides: values by key, which replace those of the file; a key may be a path such as ``model.name``.

    Raises:
        HeadEditError: there is no such file or name, or its content is wrong.
    """
    known = shipped_preferences()
    file = known.get(str(config), Path(config))
    if not os.path.isfile(file):
        raise HeadEditError(
            f"{config}: there is no such file, and headedit has no DPO run of this name.{suggest(str(config), known)}"
        )
    data = read_yaml(file)
    if not isinstance(data, Mapping):
        raise HeadEditError(f"{file}: expected a mapping of keys to values, found {type(data).__name__}.")
    found = dict(data)
    for key, value in (overrides or {}).items():
        strict.put(found, key.split("."), value)
    return strict.build(PreferenceConfig, found, str(file) if not overrides else f"{file}, with overrides")
