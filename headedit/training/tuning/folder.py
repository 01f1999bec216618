"""The folder of a run of ``headedit tune``: what is in it, and what a new run may do there."""

import json
import shutil
from pathlib import Path
from typing import Any

from headedit.errors import HeadEditError
from headedit.io.files import write_atomically
from headedit.io.json import parse_json
from headedit.training.tuning.config import TUNE_YAML, TuneConfig, read_tune

RECORD = "tune.json"
"""The record of a finished run: what was trained, how long, and what came of it."""
EVALUATION = "eval"
"""Name of the folder of the evaluation's reports."""
CHECKPOINTS = "checkpoints"
"""Name of the folder of checkpoints, until the run is finished."""
HISTORY = "history.jsonl"
"""A line for every logged step and every validation."""
DATA = "data.json"
"""What happened to the data; see ``headedit.Data``."""
LOGS = "logs"
"""Name of the folder of the trackers' logs."""
PARTIAL = "adapter.partial"
"""Name of the folder in which the adapter is written before it is moved to its place."""

_FILES = (RECORD, TUNE_YAML, DATA, HISTORY, "adapter_config.json", "adapter_model.safetensors", "README.md")
_FOLDERS = (CHECKPOINTS, EVALUATION, LOGS, PARTIAL)
_OF_ANOTHER = (*_FILES, *_FOLDERS, "config.json", "run.json")
_RESULT = ("model", "data", "method", "sparse", "train_on_inputs", "training", "seed")
"""The sections of a config that the trained adapter depends on."""


def read_record(folder: Path) -> dict[str, Any] | None:
    """The record of a finished run in a folder; None if there is none."""
    file = folder / RECORD
    if not file.is_file():
        return None
    try:
        found = parse_json(file.read_text(encoding="utf-8"), str(file))
    except (OSError, UnicodeDecodeError) as error:
        raise HeadEditError(f"{file}: cannot be read ({error}).") from None
    if not isinstance(found, dict):
        raise HeadEditError(f"{file}: expected an object, found {type(found).__name__}; the file is damaged.")
    return found


def check_folder(folder: Path, config: TuneConfig, *, resume: bool, overwrite: bool) -> None:
    """Raises a HeadEditError where training into a folder would destroy something."""
    if resume and overwrite:
        raise HeadEditError("resume and overwrite: give one of the two; a run is resumed, or removed and begun again.")
    ours = (folder / TUNE_YAML).is_file()
    others = [name for name in _OF_ANOTHER if (folder / name).exists()]
    if others and not ours:
        raise HeadEditError(
            f"{folder}: holds {others[0]}, which is not of a run of headedit tune. Choose another output folder."
        )
    if ours and not resume and not overwrite:
        state = "a finished run" if (folder / RECORD).is_file() else "a run that was stopped; continue it with --resume"
        raise HeadEditError(f"{folder}: holds {state}. Choose another output folder, or remove it with --overwrite.")
    if ours and resume:
        before, now = read_tune(folder).plain(), config.plain()
        changed = next((section for section in _RESULT if before[section] != now[section]), None)
        if changed is not None:
            raise HeadEditError(
                f"{folder}: the run in it has another '{changed}', {before[changed]} for {now[changed]}. Resume it as "
                f"it was begun: headedit tune {folder} --resume; or choose another output folder."
            )


def remove_run(folder: Path) -> None:
    """Removes what a run of headedit tune wrote into its folder."""
    for name in _FILES:  # the record first: without it the run is not taken for a finished one
        (folder / name).unlink(missing_ok=True)
    for name in _FOLDERS:
        shutil.rmtree(folder / name, ignore_errors=True)


def write_json(file: Path, content: dict[str, Any]) -> None:
    """Writes data as JSON; the file is complete or not written at all."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())
    except OSError as error:
        raise HeadEditError(f"{file}: cannot be written ({error.strerror}).") from None
