"""State on disk, as JSON next to safetensors: of callbacks, and of the stages that a run has finished."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import safetensors.torch
from torch import Tensor

from headedit.io.files import write_atomically


class State(NamedTuple):
    """The state of a callback, or of a finished stage.

    Fields:
        plain: numbers, strings, lists and dicts with string keys.
        tensors: by name.
    """

    plain: dict[str, Any]
    tensors: dict[str, Tensor]


@runtime_checkable
class Stateful(Protocol):
    """A callback whose state can be saved and restored when a stage is resumed."""

    def state_dict(self) -> State:
        """The current state."""
        ...

    def load_state_dict(self, state: State) -> None:
        """Restores a state."""
        ...


def gather(callbacks: Sequence[Any]) -> State:
    """The states of all ``Stateful`` callbacks as one state."""
    states = [callback.state_dict() for callback in callbacks if isinstance(callback, Stateful)]
    tensors = {f"{i}/{name}": tensor for i, state in enumerate(states) for name, tensor in state.tensors.items()}
    return State({"callbacks": [state.plain for state in states]}, tensors)


def scatter(state: State, callbacks: Sequence[Any]) -> None:
    """Restores every ``Stateful`` callback from a state made by ``gather``; other keys of it are ignored."""
    ours = [callback for callback in callbacks if isinstance(callback, Stateful)]
    for i, (callback, plain) in enumerate(zip(ours, state.plain["callbacks"], strict=True)):
        own = f"{i}/"
        tensors = {name.removeprefix(own): t for name, t in state.tensors.items() if name.startswith(own)}
        callback.load_state_dict(State(plain, tensors))


def write_state(folder: Path, name: str, state: State) -> None:
    """Writes ``name.safetensors``, then ``name.json``, whose presence marks the pair as complete."""
    tensors = {key: tensor.detach().cpu().contiguous() for key, tensor in state.tensors.items()}
    write_atomically(folder / f"{name}.safetensors", safetensors.torch.save(tensors))
    write_atomically(folder / f"{name}.json", (json.dumps(state.plain) + "\n").encode())


def read_state(folder: Path, name: str) -> State | None:
    """The state written under a name; None if there is none, or it is incomplete."""
    file = folder / f"{name}.json"
    if not file.is_file():
        return None
    plain = json.loads(file.read_text(encoding="utf-8"))
    return State(plain, safetensors.torch.load((folder / f"{name}.safetensors").read_bytes()))
