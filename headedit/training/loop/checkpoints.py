"""Complete checkpoints: a marker file is written last, and a checkpoint without it is never resumed from."""

import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import EarlyStoppingCallback, TrainerState
from transformers.trainer_callback import ExportableState

from headedit.errors import HeadEditError
from headedit.training.loop.state import State, Stateful, gather, read_state, scatter, write_state

MARK = "headedit_checkpoint"
"""Name of the marker files: the state of our callbacks, and what the Trainer had summed up for its next log."""


def mark_complete(folder: Path, callbacks: Sequence[Any], plain: dict[str, Any]) -> None:
    """Writes the marker of a complete checkpoint, with the state of the callbacks and some plain values."""
    state = gather(callbacks)
    write_state(folder, MARK, State({**plain, **state.plain}, state.tensors))


def restore_callbacks(folder: Path, callbacks: Sequence[Any]) -> dict[str, Any]:
    """Restores callbacks from a checkpoint, and returns the plain values of its marker; empty without a marker."""
    state = read_state(folder, MARK)
    if state is None:
        return {}
    scatter(state, callbacks)
    saved = TrainerState.load_from_json(str(folder / "trainer_state.json")).stateful_callbacks
    for callback in callbacks:
        if isinstance(callback, EarlyStoppingCallback):
            vars(callback).update(saved[type(callback).__name__]["attributes"])
    return {key: value for key, value in state.plain.items() if key != "callbacks"}


def has_ended(folder: Path) -> bool:
    """Whether a callback, such as early stopping, had ended training at this checkpoint."""
    state = read_state(folder, MARK)
    return state is not None and bool(state.plain.get("ended"))


def resumable(callbacks: Sequence[Any]) -> bool:
    """Whether a checkpoint restores the state of all these callbacks."""
    return all(isinstance(callback, Stateful | ExportableState) for callback in callbacks)


def last_complete(directory: Path) -> Path | None:
    """The last complete checkpoint in a folder; None if there is none."""
    found = [
        (int(name[1]), folder)
        for folder in (directory.iterdir() if directory.is_dir() else ())
        if (name := re.fullmatch(r"checkpoint-(\d+)", folder.name)) and (folder / f"{MARK}.json").is_file()
    ]
    return max(found)[1] if found else None


@contextmanager
def removed_on_failure(folder: Path) -> Iterator[None]:
    """A context for writing a checkpoint: if writing fails, its folder is removed, and the message says what remains.

    Raises:
        HeadEditError: the checkpoint could not be written.
    """
    try:
        yield
    except (OSError, RuntimeError, HeadEditError) as error:  # torch raises RuntimeErrors of its own for a full disk
        shutil.rmtree(folder, ignore_errors=True)
        last = last_complete(folder.parent)
        kept = "there is no earlier checkpoint" if last is None else f"the last one before it, {last}, is complete"
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise HeadEditError(
            f"{folder}: the checkpoint could not be written ({reason}); {kept}. Free some space, or choose another "
            "folder, and resume."
        ) from None
