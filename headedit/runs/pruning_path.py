"""The pruning path: the edits at every number of gates, with the validation loss there.

Training writes it, plots read it.
"""

import json
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from headedit.edits import HeadEdits
from headedit.edits.gate_set import GateIndex, freeze_gates, heads_of
from headedit.edits.values import whole_number
from headedit.errors import HeadEditError
from headedit.io import strict
from headedit.io.files import write_atomically
from headedit.io.html import html_block, html_note, html_table
from headedit.io.json import parse_json
from headedit.runs.files import PATH_FILE, PATH_TENSOR_FILE

_LEVEL_COLUMNS = ("gates", "heads", "validation loss (nats per token)", "± against the best")

Vectors = dict[str, Tensor]
"""By ``site.vector``: effective vectors, g ⊙ vector, of the heads with an open gate, in order, [heads, head_dim]."""


@dataclass(frozen=True, kw_only=True)
class Level:
    """The edits with some number of gates.

    Fields:
        order: the open gates, the most important first.
        vectors: the effective vectors of their heads.
        loss: mean validation loss in nats per token; None where there was no validation.
        standard_error: of the mean difference from the best level, over the validation examples; None as above.
    """

    order: list[GateIndex]
    vectors: Vectors = field(repr=False)
    loss: float | None = None
    standard_error: float | None = None

    @property
    def gates(self) -> int:
        """Number of open gates."""
        return len(self.order)

    @property
    def heads(self) -> int:
        """Number of heads with an open gate."""
        return len(heads_of(self.order))

    def __repr__(self) -> str:
        return f"Level({_gates(self.gates)} on {_heads(self.heads)}{self._loss_text()})"

    def _repr_html_(self) -> str:
        return html_block("Level of a pruning path", html_table(_LEVEL_COLUMNS, [self._cells()]))

    def _loss_text(self) -> str:
        if self.loss is None:
            return ""
        error = "" if self.standard_error is None else f" ± {self.standard_error:.2g}"
        return f", validation loss {self.loss:.4g}{error} nats per token"

    def _cells(self) -> list[Any]:
        figures = ["" if value is None else f"{value:.4g}" for value in (self.loss, self.standard_error)]
        return [self.gates, self.heads, *figures]


@dataclass(frozen=True)
class PruningPath:
    """The path that a search took.

    Fields:
        levels: the one with most gates first.
        chosen: number of gates that the recipe kept.
        base_loss: mean validation loss of the unedited model, in nats per token; None where it is not known.
        refits: mean validation loss of the refits that checked the choice, in nats per token, by number of gates.
    """

    levels: list[Level]
    chosen: int
    base_loss: float | None = None
    refits: dict[int, float] = field(default_factory=dict)

    def __repr__(self) -> str:
        if not self.levels:
            return "PruningPath(no level)"
        sizes = f"{len(self.levels)} levels from {self.levels[0].gates} to {self.levels[-1].gates} gates"
        return f"PruningPath({sizes}; chosen: {self._chosen_text()})"

    def _repr_html_(self) -> str:
        chosen = next((i for i, level in enumerate(self.levels) if level is self._chosen_level()), None)
        table = html_table(_LEVEL_COLUMNS, [level._cells() for level in self.levels], strong=chosen)
        base = [] if self.base_loss is None else [html_note(f"Base model: {self.base_loss:.4g} nats per token.")]
        return html_block(f"Pruning path: {self._chosen_text()}", table, *base)

    def _chosen_level(self) -> Level | None:
        fitting = [level for level in self.levels if level.gates >= self.chosen]
        return min(fitting, key=lambda level: level.gates, default=None)

    def _chosen_text(self) -> str:
        level = self._chosen_level()
        on = "" if level is None else f" on {_heads(level.heads)}{level._loss_text()}"
        return f"{_gates(self.chosen)}{on}"

    def first(self, *, gates: int | None = None, heads: int | None = None) -> list[GateIndex]:
        """The most important gates: this many, or those of this many heads.

        Raises:
            HeadEditError: the number is below 1, or above that of the gates or heads.
        """
        sizes = [level.gates if heads is None else level.heads for level in self.levels]
        given, name = (gates, "gates") if heads is None else (heads, "heads")
        wanted = None if given is None else whole_number(given, name)
        if wanted is None or not 1 <= wanted <= max(sizes):
            what = "gates" if heads is None else "heads"
            raise HeadEditError(
                f"{what}: found {wanted}, expected 1 to {max(sizes)}, the number of {what} of these edits."
            )
        order = next(
            level.order for level, size in zip(reversed(self.levels), reversed(sizes), strict=True) if size >= wanted
        )
        if heads is None:
            return order[:wanted]
        kept: list[GateIndex] = []
        for gate in order:
            if len(heads_of([*kept, gate])) > wanted:
                break
            kept.append(gate)
        return kept

    def level_of(self, gates: int) -> Level:
        """The smallest level with at least this many gates."""
        return min((level for level in self.levels if level.gates >= gates), key=lambda level: level.gates)

    def check_shape(self, edits: HeadEdits) -> None:
        """Raises a HeadEditError where the vectors of the path do not fit the sites of these edits."""
        listed = list(edits.module)
        for name, rows in self.levels[0].vectors.items():
            site, _, vector = name.rpartition(".")
            edit = listed[int(site)] if int(site) < len(listed) else None
            found = None if edit is None or vector not in edit.vectors else edit.vectors[vector]
            if found is None or len(found) < len(rows) or found.shape[1:] != rows.shape[1:]:
                raise HeadEditError(
                    f"The pruning path is of other edits: it has {vector}s of {rows.shape[-1]} numbers on {len(rows)} "
                    f"heads of site {site}, which these edits do not have. Give the edits of the run: "
                    "headedit.load(model, run.output_dir)."
                )

    def open_gates(self, edits: HeadEdits, gates: list[GateIndex]) -> None:
        """Opens these gates for good, with the vectors of the smallest level that has them; closes the others."""
        level = next(level for level in reversed(self.levels) if set(gates) <= set(level.order))
        put_level(edits, level)
        freeze_gates(edits.module, gates)

    def save(self, folder: Path) -> None:
        """Writes ``path.json`` and ``path.safetensors``."""
        data = {
            "chosen": self.chosen,
            "base_loss": self.base_loss,
            "refits": {str(gates): loss for gates, loss in self.refits.items()},
            "levels": [
                {"loss": level.loss, "standard_error": level.standard_error, "order": [list(g) for g in level.order]}
                for level in self.levels
            ],
        }
        tensors = {f"{level.gates}/{name}": rows for level in self.levels for name, rows in level.vectors.items()}
        write_atomically(folder / PATH_TENSOR_FILE, safetensors.torch.save(tensors))
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
            data = parse_json((folder / PATH_FILE).read_text(encoding="utf-8"), PATH_FILE)
            tensors = safetensors.torch.load((folder / PATH_TENSOR_FILE).read_bytes())
            vectors: dict[int, Vectors] = {}
            for name, rows in tensors.items():
                gates, _, key = name.partition("/")
                vectors.setdefault(int(gates), {})[key] = rows
            levels = [
                Level(
                    order=[GateIndex(*strict.convert(tuple[int, str, int], gate, "order")) for gate in row["order"]],
                    vectors=vectors[len(row["order"])],
                    **{key: strict.convert(float | None, row.get(key), key) for key in ("loss", "standard_error")},
                )
                for row in strict.convert(list[dict[str, Any]], data["levels"], "levels")
            ]
            if not levels:
                raise HeadEditError("it has no level")
            refits = strict.convert(dict[str, float], data.get("refits", {}), "refits")
            return PruningPath(
                levels,
                strict.convert(int, data["chosen"], "chosen"),
                strict.convert(float | None, data.get("base_loss"), "base_loss"),
                {int(gates): loss for gates, loss in refits.items()},
            )
        except Exception as error:  # of the system, of JSON and safetensors, and of what the files lack
            raise HeadEditError(f"{folder}: the pruning path is damaged ({error}).") from None


def _gates(count: int) -> str:
    return f"{count} gate{'s' if count != 1 else ''}"


def _heads(count: int) -> str:
    return f"{count} head{'s' if count != 1 else ''}"


@torch.no_grad()
def put_level(edits: HeadEdits, level: Level) -> None:
    """Opens the gates of a level for good, with its vectors; closes the others."""
    site_edits = list(edits.module)
    for name, rows in level.vectors.items():
        site, _, vector = name.rpartition(".")
        target = site_edits[int(site)].vectors[vector]
        target[heads_under(edits, level.order, int(site), vector)] = rows.to(target)
    freeze_gates(edits.module, level.order)


def heads_under(edits: HeadEdits, alive: list[GateIndex], site: int, vector: str) -> list[int]:
    """The heads of a site, in order, whose gate on a vector is among these."""
    edit = list(edits.module)[site]
    owner = next(name for name in edit.gated_vectors() if vector in edit.vectors_of(name))
    return sorted(gate.head for gate in alive if gate.site == site and gate.vector == owner)
