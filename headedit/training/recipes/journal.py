"""What a run has finished, stage by stage, so that a run that was stopped goes on where it was, to the same bits.

A recipe calls its stages in an order that depends on nothing but what they come to. So on going on the recipe is run
again, and every stage that was finished is answered from the journal: the edits as it left them, what its callbacks
found, and its figures. The first that was not finished goes on from its last complete checkpoint, or begins.
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
from headedit.training.loop.state import State, gathered, read_state, scatter, write_state

FOLDER = "journal"
_RUN = "run.json"


@dataclass
class Journal:
    """The stages of one session.

    Fields:
        folder: of the session's checkpoints.
        writes: whether this process is the one that writes.
    """

    folder: Path
    writes: bool = True
    _next: int = field(default=0, init=False)

    def begin(self, identity: dict[str, str], *, resume: bool) -> None:
        """Starts a new journal, or goes on with the one that is there.

        Args:
            identity: what the run is made of, by name; on going on all of it must be the same.
            resume: go on, where there is something to go on with.

        Raises:
            HeadEditError: what is there belongs to another run.
        """
        self._next = 0
        file = self._place / _RUN
        if resume and file.is_file():
            before = json.loads(file.read_text(encoding="utf-8"))
            differing = [key for key in {**before, **identity} if before.get(key) != identity.get(key)]
            if differing:
                raise HeadEditError(
                    f"{self.folder.parent}: the run that was stopped here differs in {', '.join(differing)}. Go on "
                    "with what it was started with, or start anew, without resuming, or in another folder."
                )
            return
        if self.writes:
            shutil.rmtree(self.folder, ignore_errors=True)
            self._place.mkdir(parents=True)
            write_atomically(file, (json.dumps(identity) + "\n").encode())

    def finished(self, name: str) -> State | None:
        """The next stage, if it was finished: its figures, and the tensors of edits and callbacks."""
        self._next += 1
        return read_state(self._place, self.key(name))

    def finish(self, name: str, state: State) -> None:
        """Takes down the stage that was asked for last, and takes its checkpoints away."""
        if self.writes:
            write_state(self._place, self.key(name), state)
            shutil.rmtree(self.folder / self.key(name), ignore_errors=True)

    def clear(self) -> None:
        """Takes the journal away, once the run has saved what it came to."""
        if self.writes:
            shutil.rmtree(self._place, ignore_errors=True)

    @property
    def _place(self) -> Path:
        return self.folder / FOLDER

    def key(self, name: str) -> str:
        """The name of the stage that was asked for last, which no other one has; its checkpoints' folder has it too."""
        return f"{self._next:02d}-{name.replace(' ', '-')}"


def taken_down(module: nn.Module, callbacks: Sequence[Any], figures: dict[str, Any]) -> State:
    """Edits, callbacks and figures of a stage as one state."""
    state = gathered(callbacks)
    edits: dict[str, Tensor] = {f"edits/{name}": parameter for name, parameter in module.named_parameters()}
    return State({"figures": figures, **state.plain}, edits | state.tensors)


@torch.no_grad()
def put_back(state: State, module: nn.Module, callbacks: Sequence[Any]) -> dict[str, Any]:
    """Puts edits and callbacks to where a stage left them, and gives its figures."""
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
    """A hash of what examples hold, in memory or on disk."""
    found = hashlib.sha256(b"none" if rows is None else b"")
    for row in rows or ():
        for key in ("input_ids", "labels"):
            found.update(numpy.asarray([len(row[key]), *row[key]], dtype="int64").tobytes())
    return _short(found)


def _short(found: Any) -> str:
    return str(found.hexdigest()[:16])
