"""The pruning path: the edits at every number of gates, with the validation loss there.

Training writes it, plots read it.
"""

import json
from dataclasses import asdict, dataclass
from os import PathLike
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from headedit.edits import HeadEdits
from headedit.edits.files import write_atomically
from headedit.edits.support import Gate, fix, heads_of
from headedit.errors import HeadEditError

PATH_FILE = "path.json"
VECTOR_FILE = "path.safetensors"

Vectors = dict[str, Tensor]
"""By ``site.vector``: what acts, g ⊙ vector, on the heads whose gate is open, in their order, [heads, head_dim]."""


@dataclass(frozen=True, kw_only=True)
class Level:
    """The edits with some number of gates.

    Fields:
        gates: number of open gates.
        heads: number of heads that they stand on.
        loss: mean validation loss in nats a token; None where there was no validation.
        standard_error: of the mean difference from the best level, over the validation examples; None as above.
    """

    gates: int
    heads: int
    loss: float | None = None
    standard_error: float | None = None


@dataclass(frozen=True)
class PruningPath:
    """What a search found.

    Fields:
        levels: the one with most gates first.
        order: every gate, the most important first; the first k are the gates of the level of k.
        chosen: number of gates that the recipe kept.
        vectors: the vectors of each level, by its number of gates.
    """

    levels: list[Level]
    order: list[Gate]
    chosen: int
    vectors: dict[int, Vectors]

    def first(self, *, gates: int | None = None, heads: int | None = None) -> list[Gate]:
        """The most important gates: so many of them, or as many as stand on so many heads.

        Raises:
            HeadEditError: there are not so many, or fewer than one is asked for.
        """
        most = len(self.order) if heads is None else len(heads_of(self.order))
        wanted = gates if heads is None else heads
        if wanted is None or not 1 <= wanted <= most:
            what = "gates" if heads is None else "heads"
            raise HeadEditError(f"{what}: found {wanted}, expected 1 to {most}, the number of {what} of these edits.")
        if heads is None:
            return self.order[:wanted]
        kept: list[Gate] = []
        for gate in self.order:
            if len(heads_of([*kept, gate])) > wanted:
                break
            kept.append(gate)
        return kept

    def level_of(self, gates: int) -> Level:
        """The smallest level with at least so many gates."""
        return min((level for level in self.levels if level.gates >= gates), key=lambda level: level.gates)

    @torch.no_grad()
    def put(self, edits: HeadEdits, gates: list[Gate]) -> None:
        """Opens these gates for good, with the vectors of the smallest level that has them, and closes the others."""
        level = self.level_of(len(gates))
        alive = self.order[: level.gates]
        for name, rows in self.vectors[level.gates].items():
            site, _, vector = name.rpartition(".")
            edit = edits.module.sites[int(site)]
            heads = heads_under(edits, alive, int(site), vector)
            target = getattr(edit, vector)
            target[heads] = rows.to(target)
        fix(edits.module, gates)

    def save(self, folder: Path) -> None:
        """Writes ``path.json`` and ``path.safetensors``."""
        data = {
            "chosen": self.chosen,
            "levels": [asdict(level) for level in self.levels],
            "order": [list(gate) for gate in self.order],
        }
        tensors = {f"{gates}/{name}": rows for gates, vectors in self.vectors.items() for name, rows in vectors.items()}
        write_atomically(folder / VECTOR_FILE, safetensors.torch.save(tensors))
        write_atomically(folder / PATH_FILE, (json.dumps(data) + "\n").encode())

    @staticmethod
    def read(directory: "str | PathLike[str]") -> "PruningPath":
        """The path that was saved in the folder of a run.

        Raises:
            HeadEditError: there is none, or a file is damaged.
        """
        folder = Path(directory)
        if not (folder / PATH_FILE).is_file():
            raise HeadEditError(f"{folder}: holds no {PATH_FILE}; the recipe 'localise' writes one where it prunes.")
        try:
            data = json.loads((folder / PATH_FILE).read_text(encoding="utf-8"))
            tensors = safetensors.torch.load((folder / VECTOR_FILE).read_bytes())
            vectors: dict[int, Vectors] = {}
            for name, rows in tensors.items():
                gates, _, key = name.partition("/")
                vectors.setdefault(int(gates), {})[key] = rows
            levels = [Level(**level) for level in data["levels"]]
            return PruningPath(levels, [Gate(*gate) for gate in data["order"]], data["chosen"], vectors)
        except (OSError, ValueError, KeyError, TypeError, safetensors.SafetensorError) as error:
            raise HeadEditError(f"{folder}: the pruning path is damaged ({error}).") from None


def heads_under(edits: HeadEdits, alive: list[Gate], site: int, vector: str) -> list[int]:
    """The heads of a site, in order, whose gate on a vector is among these."""
    edit = edits.module.sites[site]
    owner = next(name for name in edit.gated_vectors() if vector in edit.under(name))  # type: ignore[operator]
    return sorted(gate.head for gate in alive if gate.site == site and gate.vector == owner)
