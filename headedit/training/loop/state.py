"""State on disk, as plain JSON beside safetensors: of callbacks, and of what a run has finished."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import safetensors.torch
from torch import Tensor

from headedit.io.files import write_atomically


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


def gathered(callbacks: Sequence[Any]) -> State:
    """Where callbacks are, as one state; those that are not ``Stateful`` are left out."""
    states = [callback.state_dict() for callback in callbacks if isinstance(callback, Stateful)]
    tensors = {f"{i}/{name}": tensor for i, state in enumerate(states) for name, tensor in state.tensors.items()}
    return State({"callbacks": [state.plain for state in states]}, tensors)


def scatter(state: State, callbacks: Sequence[Any]) -> None:
    """Puts callbacks to where they were when their states were gathered; other keys of the state are passed by."""
    ours = [callback for callback in callbacks if isinstance(callback, Stateful)]
    for i, (callback, plain) in enumerate(zip(ours, state.plain["callbacks"], strict=True)):
        own = f"{i}/"
        tensors = {name.removeprefix(own): t for name, t in state.tensors.items() if name.startswith(own)}
        callback.load_state_dict(State(plain, tensors))


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
