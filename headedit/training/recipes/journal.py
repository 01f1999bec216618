"""The journal of a run: the result of every finished stage, so that a stopped run resumes to the same bits.

The order in which a recipe runs its stages depends on nothing but their results. To resume, the recipe is run again,
and the result of every finished stage is read from the journal: the edits as it left them, the state of its callbacks,
and its figures. The first unfinished stage resumes from its last complete checkpoint, or starts.
"""

import hashlib
import json
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor, nn

from headedit.data.batches import Encoded
from headedit.errors import HeadEditError
from headedit.io.files import write_atomically
from headedit.runs.folder import JOURNAL, JOURNAL_FILE, LOGS, OWNER_FILE, check_own_checkpoints, remove_checkpoints
from headedit.training.loop.state import State, gather, read_state, scatter, write_state
from headedit.version import __version__


def own_identity(seed: int, edits: Sequence[Tensor]) -> dict[str, str]:
    """What the result of a run depends on beyond examples and settings: its seed, and the edits that it starts from."""
    return {"seed": str(seed), "edits": digest_tensors(edits)}


@dataclass
class Journal:
    """The finished stages of one session.

    Fields:
        folder: the folder of the session's checkpoints.
        writes: whether this process writes; True in one process only.
    """

    folder: Path
    writes: bool = True
    _next: int = field(default=0, init=False)

    def begin(self, identity: dict[str, str], *, resume: bool) -> None:
        """Starts a new journal, or continues the one in the folder.

        Args:
            identity: hashes of everything that the run's result depends on, by name; a resumed run must have the same.
            resume: continue the journal in the folder, if there is one.

        Raises:
            HeadEditError: the journal in the folder belongs to another run, or the folder of checkpoints has files
                that headedit did not write.
        """
        self._next = 0
        check_own_checkpoints(self.folder)
        file = self._journal_folder / JOURNAL_FILE
        if resume and file.is_file():
            before = json.loads(file.read_text(encoding="utf-8"))
            check_same_run(self.folder.parent, "stopped", before, identity)
            return
        if self.writes:
            remove_checkpoints(self.folder)
            self.folder.mkdir(parents=True, exist_ok=True)
            owner = json.dumps({"headedit": __version__, "purpose": "checkpoints of a run that is not finished"})
            write_atomically(self.folder / OWNER_FILE, (owner + "\n").encode())
            self._journal_folder.mkdir(exist_ok=True)
            write_atomically(file, (json.dumps(identity) + "\n").encode())

    def finished(self, name: str) -> State | None:
        """The result of the next stage, see ``snapshot_stage``; None if that stage was not finished."""
        self._next += 1
        return read_state(self._journal_folder, self.key(name))

    def finish(self, name: str, state: State) -> None:
        """Writes the result of the current stage, keeps its logs, and removes its checkpoints."""
        if self.writes:
            _keep_logs(self.folder / self.key(name), self.logs(name))
            write_state(self._journal_folder, self.key(name), state)
            shutil.rmtree(self.folder / self.key(name), ignore_errors=True)

    def clear(self) -> None:
        """Removes journal and checkpoints, once the run has saved its edits and its record."""
        if self.writes:
            remove_checkpoints(self.folder)

    def logs(self, name: str) -> Path:
        """The folder for the trackers' logs of the current stage."""
        return self.folder.parent / LOGS / self.key(name)

    @property
    def _journal_folder(self) -> Path:
        return self.folder / JOURNAL

    def key(self, name: str) -> str:
        """A unique name for the current stage's files in the journal and its folder of checkpoints."""
        return f"{self._next:02d}-{name.replace(' ', '-')}"


def _keep_logs(stage: Path, logs: Path) -> None:
    """Moves all files of a stage that are not of its checkpoints, which trackers wrote, into the folder of logs."""
    for file in list(stage.rglob("*")):
        place = file.relative_to(stage)
        if file.is_file() and not place.parts[0].startswith("checkpoint-"):
            (logs / place).parent.mkdir(parents=True, exist_ok=True)
            file.replace(logs / place)


def check_same_run(folder: Path, state: str, before: dict[str, str], identity: dict[str, str]) -> None:
    """Raises a HeadEditError if the run in a folder depends on something else than this one.

    Args:
        folder: the folder of the run.
        state: ``stopped`` or ``finished``.
        before: hashes of what the run in the folder depends on, by name.
        identity: those of this run.
    """
    differing = [key for key in {**before, **identity} if before.get(key) != identity.get(key)]
    if differing:
        examples = any(key.endswith("examples") for key in differing)
        hint = " If a chat template wrote the date into the examples, write that of the first day." if examples else ""
        raise HeadEditError(
            f"{folder}: the run that was {state} here differs in {', '.join(differing)}. Resume with what it was "
            f"started with, or train into another folder; or overwrite=True, or --overwrite, removes it first.{hint}"
        )


def snapshot_stage(module: nn.Module, callbacks: Sequence[Any], figures: dict[str, Any]) -> State:
    """The result of a stage as one state: its edits, the state of its callbacks, and its figures."""
    state = gather(callbacks)
    edits: dict[str, Tensor] = {f"edits/{name}": parameter for name, parameter in module.named_parameters()}
    return State({"figures": figures, **state.plain}, edits | state.tensors)


@torch.no_grad()
def restore_stage(state: State, module: nn.Module, callbacks: Sequence[Any]) -> dict[str, Any]:
    """Restores edits and callbacks as a stage left them, and returns its figures."""
    for name, parameter in module.named_parameters():
        parameter.copy_(state.tensors[f"edits/{name}"])
    scatter(state, callbacks)
    figures: dict[str, Any] = state.plain["figures"]
    return figures


def digest(value: Any) -> str:
    """A hash of plain data."""
    return _short(hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()))


def digest_tensors(tensors: Iterable[Tensor]) -> str:
    """A hash of tensors in their order."""
    found = hashlib.sha256()
    for tensor in tensors:
        found.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return _short(found)


def digest_rows(rows: Iterable[Encoded] | None) -> str:
    """A hash of the token ids and labels of examples, the same in memory and on disk."""
    found = hashlib.sha256(b"none" if rows is None else b"")
    for row in rows or ():
        for key in ("input_ids", "labels"):
            found.update(numpy.asarray([len(row[key]), *row[key]], dtype="int64").tobytes())
    return _short(found)


def _short(found: Any) -> str:
    return str(found.hexdigest()[:16])
