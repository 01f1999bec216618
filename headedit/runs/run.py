"""A finished run: its edits, history and settings, as ``fit`` returns them and as they are saved."""

import json
from dataclasses import dataclass
from datetime import datetime, timezone
from os import PathLike
from pathlib import Path
from typing import Any

from headedit.edits import HeadEdits
from headedit.errors import HeadEditError
from headedit.io.files import write_atomically
from headedit.io.html import html_block, html_table
from headedit.runs.files import RUN_FILE
from headedit.runs.history import History
from headedit.runs.pruning_path import Level, PruningPath
from headedit.runs.record import read_record, worse_than_base
from headedit.runs.selection import Selection
from headedit.runs.stability import Stability


def times(seconds: float) -> dict[str, Any]:
    """What a record says of time: how long the run took, and the day on which it ended, in UTC."""
    return {"seconds": round(seconds, 2), "date": f"{datetime.now(timezone.utc):%Y-%m-%d}"}


@dataclass(frozen=True)
class Run:
    """A finished run.

    Fields:
        output_dir: the folder, which holds the edits, ``history.jsonl`` and ``run.json``.
        history: the logged steps.
        record: recipe, settings, seed, sizes of the sets, steps, seconds, date, best validation loss, losses of base
            and edited model on held-out examples, open gates.
        edits: the handle of the trained edits; None for a run read from disk.
    """

    output_dir: Path
    history: History
    record: dict[str, Any]
    edits: HeadEdits | None = None

    def __repr__(self) -> str:
        return f"Run({'; '.join([self._name(), *self._figures(), str(self.output_dir)])})"

    def _repr_html_(self) -> str:
        try:
            rows = self.rows()
        except (KeyError, TypeError, ValueError):  # of a record that another version wrote
            rows = []
        return html_block(f"Run: {self._name()}", html_table([], [*rows, ("folder", str(self.output_dir))]))

    def _name(self) -> str:
        """Recipe, base model and seed, as far as the record has them."""
        record = self.record
        on = f" on {record['base_model']}" if record.get("base_model") else ""
        seed = f", seed {record['seed']}" if record.get("seed") is not None else ""
        return f"{record.get('recipe') or 'no recipe'}{on}{seed}"

    def _figures(self) -> list[str]:
        """Edited heads and held-out loss, as far as the record has them."""
        heads, losses = (self.record.get("open") or {}).get("any") or {}, self.record.get("held_out") or {}
        found = [f"{heads['open']} of {heads['of']} heads edited"] if {"open", "of"} <= heads.keys() else []
        edited, base = losses.get("edited"), losses.get("base")
        if isinstance(edited, int | float) and isinstance(base, int | float):
            found.append(f"held-out loss {edited:.4g}, base {base:.4g} nats per token")
        return found

    @property
    def stability(self) -> Stability | None:
        """How far the seeds agree; None for a single one."""
        found = self.record.get("stability")
        return None if found is None else Stability.from_dict(found)

    @property
    def selection(self) -> Selection | None:
        """How sure each gate is, by stability selection; None where ``fit`` was called without ``bootstrap``."""
        found = self.record.get("selection")
        return None if found is None else Selection.from_dict(found)

    @property
    def controls(self) -> dict[str, dict[str, Any]] | None:
        """Gates, validation loss and metric of the chosen heads and of every control; None without them."""
        found: dict[str, dict[str, Any]] | None = self.record.get("controls")
        return found

    @property
    def path(self) -> PruningPath:
        """The pruning path of the recipe ``localise``.

        Raises:
            HeadEditError: the run has none.
        """
        return PruningPath.read(self.output_dir)

    def at(self, *, heads: int | None = None, gates: int | None = None, edits: HeadEdits | None = None) -> Level:
        """Puts the edits of the pruning path with another number of heads, or of gates, on the model.

        They are as the search left them at that number, without a refit; ``fit(..., heads=12)`` refits. The number that
        the run itself chose is in ``output_dir``.

        Args:
            heads: number of heads to edit.
            gates: number of gates to leave open, in place of ``heads``.
            edits: the handle; by default the run's own.

        Returns:
            The smallest level of the path that has these gates, with its validation loss.

        Raises:
            HeadEditError: the run has no pruning path, the number is not possible, there is no handle, or its edits are
                merged or of another shape than the run's.
        """
        handle = self.edits if edits is None else edits
        if handle is None:
            raise HeadEditError("This run was read from disk; give the handle of edits on its model, edits=...")
        if (heads is None) == (gates is None):
            raise HeadEditError("at: give heads=... or gates=..., one of the two.")
        path = self.path
        chosen = path.first(heads=heads, gates=gates)
        path.check_shape(handle)
        with handle.writing("other gates cannot be opened"):
            path.open_gates(handle, chosen)
        return path.level_of(len(chosen))

    @property
    def worse_than_base(self) -> str | None:
        """Says that the edits were more than 1 % worse than the unedited model, which was kept; None if not."""
        found = self.record.get("held_out")
        return None if found is None else worse_than_base(found)

    def open_rows(self) -> list[tuple[str, str]]:
        """How many heads and gates are open, of how many, as (what, value) for a table."""
        labels = {"any": "edited heads", "offset": "open offset gates", "scale": "open scale gates"}
        counts = self.record["open"]
        return [(label, f"{counts[key]['open']} of {counts[key]['of']}") for key, label in labels.items()]

    def rows(self) -> list[tuple[str, str]]:
        """The run in short, as (what, value) for a table."""
        record = self.record
        rows = [
            *([("nothing learnt", worse)] if (worse := self.worse_than_base) else []),
            ("examples", f"{record['train_examples']} to train on, {record['valid_examples']} to validate on"),
            ("steps", str(record["steps"])),
            ("loss on held-out examples", self._held_out_text()),
            *self.open_rows(),
            ("time", f"{record['seconds']:.0f} s"),
        ]
        for name, found in (self.controls or {}).items():
            loss, metric = found["validation_loss"], found.get("metric")
            measured = f"metric {metric:.4g}" if loss is None else f"{loss:.4f} nats per token"
            rows.append((f"control: {name}", f"{measured} with {found['gates']} gates"))
        selection = self.selection
        if selection is not None:
            rows += selection.rows()
        stability = self.stability
        if stability is not None:
            agree = f"Jaccard {stability.jaccard:.2f} over {len(stability.seeds)} seeds, chance {stability.chance:.2f}"
            rows.append(("agreement of the heads", agree))
            spread = stability.validation_loss
            if spread is not None:
                rows.append(("validation loss by seed", f"{spread.mean:.4f} ± {spread.std:.4f} nats per token"))
        return rows

    def _held_out_text(self) -> str:
        """The losses of base and edited model on held-out examples; of an older record what it has."""
        found, best = self.record.get("held_out"), self.record["best_eval_loss"]
        if found:
            count, by = found["examples"], found["by"]
            losses = f"{found['edited']:.4f} nats per token, the base's {found['base']:.4f}"
            return f"{losses}, on {count} examples, {by}"
        if best is not None:
            return f"{best:.4f} nats per token"
        return "none, as no examples were held out; give a validation set"

    def save(self) -> None:
        """Writes ``run.json``."""
        text = json.dumps(self.record, indent=2) + "\n"
        write_atomically(self.output_dir / RUN_FILE, text.encode())

    @staticmethod
    def read(directory: "str | PathLike[str]") -> "Run":
        """The run in a folder, without its edits, which need the model: ``headedit.load(model, folder)``.

        Raises:
            HeadEditError: the folder holds no run.
        """
        folder = Path(directory)
        history = History.read(folder)
        return Run(folder, history, read_record(folder))
