"""Checkpoints that are whole: a mark is written last, and one without it is never gone on from."""

import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import EarlyStoppingCallback, TrainerState
from transformers.trainer_callback import ExportableState

from headedit.errors import HeadEditError
from headedit.training.loop.state import State, Stateful, gathered, read_state, scatter, write_state

MARK = "headedit_checkpoint"
"""Name of the files that a checkpoint has last: where our callbacks were, and what the trainer had summed up."""


def mark(folder: Path, callbacks: Sequence[Any], plain: dict[str, Any]) -> None:
    """Marks a checkpoint as whole."""
    state = gathered(callbacks)
    write_state(folder, MARK, State({**plain, **state.plain}, state.tensors))


def restore(folder: Path, callbacks: Sequence[Any]) -> dict[str, Any]:
    """Puts callbacks to where they were at a checkpoint, and gives what was marked beside them."""
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
    """Whether all of these callbacks can go on from a checkpoint."""
    return all(isinstance(callback, Stateful | ExportableState) for callback in callbacks)


def last_whole(directory: Path) -> Path | None:
    """The last checkpoint in a folder that was written to its end; None where there is none."""
    found = [
        (int(name[1]), folder)
        for folder in (directory.iterdir() if directory.is_dir() else ())
        if (name := re.fullmatch(r"checkpoint-(\d+)", folder.name)) and (folder / f"{MARK}.json").is_file()
    ]
    return max(found)[1] if found else None


@contextmanager
def reported(folder: Path) -> Iterator[None]:
    """A context for writing a checkpoint: where that fails nothing of it is left, and the message says what is.

    Raises:
        HeadEditError: the checkpoint could not be written.
    """
    try:
        yield
    except (OSError, RuntimeError, HeadEditError) as error:  # torch raises RuntimeErrors of its own for a full disk
        shutil.rmtree(folder, ignore_errors=True)
        last = last_whole(folder.parent)
        kept = "none was written before" if last is None else f"the last one that was, {last}, is whole"
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise HeadEditError(
            f"{folder}: the checkpoint could not be written ({reason}); {kept}. Make room, or choose another folder, "
            "and resume."
        ) from None
