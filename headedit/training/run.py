"""A finished run: its edits, history and settings, as ``fit`` returns them and as they lie on disk."""

import json
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from headedit.edits import HeadEdits
from headedit.edits.files import write_atomically
from headedit.errors import HeadEditError
from headedit.history import History

RUN_FILE = "run.json"


@dataclass(frozen=True)
class Run:
    """What a run left behind.

    Fields:
        output_dir: the folder, which holds the edits, ``history.jsonl`` and ``run.json``.
        history: the logged steps.
        record: recipe, settings, seed, sizes of the sets, steps, seconds, best validation loss, open gates.
        edits: the handle of the trained edits; None for a run read from disk.
    """

    output_dir: Path
    history: History
    record: dict[str, Any]
    edits: HeadEdits | None = None

    def open_rows(self) -> list[tuple[str, str]]:
        """What is open of how many, as (what, value) for a table."""
        labels = {"any": "edited heads", "offset": "open offset gates", "scale": "open scale gates"}
        counts = self.record["open"]
        return [(label, f"{counts[key]['open']} of {counts[key]['of']}") for key, label in labels.items()]

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
        try:
            record = json.loads((folder / RUN_FILE).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise HeadEditError(f"{folder / RUN_FILE}: cannot be read ({error}).") from None
        return Run(folder, history, record)
