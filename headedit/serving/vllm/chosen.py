"""The edit of a request, as it travels through vLLM: a LoRA request whose name says which values act.

The name is the key of the prefix cache. It has the hash of the edit's content and the strength; and, for edits that
act on some tokens alone, the length of the prompt, since the same tokens are edited differently in another prompt.
"""

import hashlib
from typing import Any, NamedTuple

from headedit.serving.saved_edit import SavedEdit

_BITS = 31  # of vLLM's ids of adapters


class Chosen(NamedTuple):
    """The edit and the strength of a request.

    Fields:
        name: of the edit.
        digest: of its content.
        strength: the factor on its vectors.
        positions: the tokens that it acts on.
    """

    name: str
    digest: str
    strength: float
    positions: str

    @property
    def values(self) -> tuple[str, float]:
        """What decides the vectors: one slot holds them."""
        return self.digest, self.strength


def choose(edit: SavedEdit, strength: float) -> Chosen:
    """A saved edit with a strength."""
    return Chosen(edit.name, edit.digest, strength, edit.positions)


def pack(chosen: Chosen, prompt: int) -> str:
    """The name that a request carries.

    Args:
        chosen: the edit.
        prompt: the number of the prompt's tokens.
    """
    boundary = "" if chosen.positions == "all" else str(prompt)
    return ":".join([chosen.name, chosen.digest, repr(chosen.strength), chosen.positions, boundary])


def unpack(name: str) -> Chosen:
    """The edit that a request's name says."""
    edit, digest, strength, positions, _ = name.rsplit(":", 4)
    return Chosen(edit, digest, float(strength), positions)


class Ids:
    """Numbers for edits, as vLLM wants them: the same in every process, one for each pair of values."""

    def __init__(self) -> None:
        self._taken: dict[int, tuple[str, float]] = {}

    def of(self, chosen: Chosen) -> int:
        """The number of an edit's values."""
        digest = hashlib.sha256(repr(chosen.values).encode()).digest()
        number = int.from_bytes(digest[:4], "big") >> (32 - _BITS)
        while number == 0 or self._taken.setdefault(number, chosen.values) != chosen.values:
            number = (number + 1) % 2**_BITS
        return number


def as_request(chosen: Chosen, path: str, ids: Ids, prompt: int = 0) -> Any:
    """A request for an edit that vLLM carries."""
    from vllm.lora.request import LoRARequest

    return LoRARequest(pack(chosen, prompt), ids.of(chosen), path)
