"""State on disk, as plain JSON beside safetensors: of callbacks, and of what a run has finished."""

import json
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import safetensors.torch
from torch import Tensor

from headedit.edits.files import write_atomically


class State(NamedTuple):
    """What brings something back to where it was.

    Fields:
        plain: numbers, texts, lists and dicts with text keys.
        tensors: by name.
    """

    plain: dict[str, Any]
    tensors: dict[str, Tensor]


@runtime_checkable
class Stateful(Protocol):
    """A callback that a stopped stage can go on with."""

    def state_dict(self) -> State:
        """Where it is."""
        ...

    def load_state_dict(self, state: State) -> None:
        """Puts it there."""
        ...


def write_state(folder: Path, name: str, state: State) -> None:
    """Writes ``name.safetensors``, then ``name.json``, by which the pair counts as there."""
    tensors = {key: tensor.detach().cpu().contiguous() for key, tensor in state.tensors.items()}
    write_atomically(folder / f"{name}.safetensors", safetensors.torch.save(tensors))
    write_atomically(folder / f"{name}.json", (json.dumps(state.plain) + "\n").encode())


def read_state(folder: Path, name: str) -> State | None:
    """What was written under a name; None where the writing was not finished."""
    file = folder / f"{name}.json"
    if not file.is_file():
        return None
    plain = json.loads(file.read_text(encoding="utf-8"))
    return State(plain, safetensors.torch.load((folder / f"{name}.safetensors").read_bytes()))
