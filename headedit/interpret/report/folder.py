"""The files in the folder of a run, and the facts and tables that a report shows of them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from headedit.edits.files.format import TENSOR_FILE, holds_edits
from headedit.edits.files.storage import read_record
from headedit.errors import HeadEditError
from headedit.interpret.head_map import HeadMap
from headedit.interpret.labels import LABELS, axis_label, short, with_error
from headedit.io.json import parse_json
from headedit.runs.files import DATA_FILE, HISTORY_FILE, PATH_FILE, RUN_FILE, RUN_YAML
from headedit.runs.pruning_path import PruningPath
from headedit.runs.record import check_record
from headedit.runs.selection import Selection

_MOST = 12  # values of a list that are shown
_AGREEMENT = {
    "heads": "edited heads of each seed",
    "jaccard": "Jaccard index of the heads, mean of the pairs",
    "chance": "Jaccard index by chance",
}


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table of a report.

    Fields:
        title: above it.
        header: names of the columns; empty for pairs of a name and a value.
        cells: the rows.
        left: number of columns of words, which are aligned to the left.
        notes: below it.
    """

    title: str
    header: Sequence[str]
    cells: Sequence[Sequence[str]]
    left: int = 1
    notes: Sequence[str] = field(default_factory=tuple)


@dataclass(frozen=True, kw_only=True)
class RunFolder:
    """A run on disk.

    Fields:
        path: the folder.
        record: of ``run.json``.
        saved: of ``headedit_config.json``.
        source: the edits.
        levels: the pruning path; None without one.
        data: of ``data.json``, what happened to the data; None without it.
        config: the text of ``run.yaml``; None without it.
    """

    path: Path
    record: dict[str, Any]
    saved: dict[str, Any]
    source: HeadMap
    levels: PruningPath | None
    data: dict[str, Any] | None
    config: str | None

    @staticmethod
    def read(folder: Path) -> "RunFolder":
        """The run in a folder.

        Raises:
            HeadEditError: the folder holds no edits or no history, or a file is damaged.
        """
        if not holds_edits(folder):
            raise HeadEditError(
                f"{folder}: contains no {TENSOR_FILE}, so there are no edits to report on. Give the output folder of "
                "headedit train, or of fit(..., output_dir=...)."
            )
        for name in (HISTORY_FILE, RUN_FILE):
            if not (folder / name).is_file():
                raise HeadEditError(
                    f"{folder}: contains edits but no {name}, so this is not the folder of a finished run. Give the "
                    f"output folder of a run; for edits alone use: headedit plot {folder}"
                )
        source, text = HeadMap.of(folder), folder / RUN_YAML
        return RunFolder(
            path=folder,
            record=check_record(_object(folder / RUN_FILE), folder / RUN_FILE),
            saved=read_record(folder),
            source=source,
            levels=PruningPath.read(folder) if (folder / PATH_FILE).is_file() else None,
            data=_object(folder / DATA_FILE) if (folder / DATA_FILE).is_file() else None,
            config=_text(text) if text.is_file() else None,
        )

    @property
    def base_model(self) -> str:
        """The hub id of the base model, or the name of its folder, without the path to it."""
        return str(self.saved["base_model"].get("name_or_path") or "unknown")

    @property
    def selection(self) -> Selection | None:
        """How sure each gate is; None where the run was made without halves."""
        found = self.record.get("selection")
        return None if found is None else Selection.from_dict(found)

    def facts(self) -> list[tuple[str, str]]:
        """The run in brief, as (what, value)."""
        record, base, module = self.record, self.saved["base_model"], self.source.module
        counts = module.count_open()
        parameters = sum(int(edit.is_open(vector).sum()) * edit.head_dim for edit in module for vector in edit.vectors)
        facts = [
            ("base model", f"{Path(self.base_model).name} ({base.get('class', '')})"),
            (short("recipe"), record.get("recipe")),
            (short("seed"), record.get("seed")),
            *((short(key), "{:,} of {:,}".format(*counts[key])) for key in ("any", "offset", "scale")),
            (axis_label("parameters"), f"{parameters:,}"),
            ("examples", _examples(record)),
            ("steps", record.get("steps")),
            (short("validation_loss"), _loss(record.get("best_eval_loss"))),
            (short("test_loss"), _loss(record.get("test_loss"))),
            ("test loss of the base model", _loss(record.get("test_loss_base"))),
            (short("seconds"), _seconds(record.get("seconds"))),
        ]
        return [(what, str(value)) for what, value in facts if value is not None]

    def measured(self) -> Iterator[Table]:
        """Tables of what the run measured in addition to its losses: controls, and the agreement of the seeds."""
        controls, stability = self.record.get("controls"), self.record.get("stability")
        if isinstance(controls, Mapping):
            names = list(dict.fromkeys(key for found in controls.values() for key in found))
            cells = [[name, *(shown(found.get(key)) for key in names)] for name, found in controls.items()]
            yield Table(title="Controls", header=["heads", *(key.replace("_", " ") for key in names)], cells=cells)
        if self.selection is not None:
            yield selection_table(self.selection)
        if isinstance(stability, Mapping):
            spreads = {key: spread for key, spread in stability.items() if isinstance(spread, Mapping)}
            others = {key: value for key, value in stability.items() if key not in spreads}
            cells = [[_AGREEMENT.get(what, what), shown(value)] for what, value in flat(others) if value is not None]
            cells += [[key.replace("_", " "), _spread(found)] for key, found in spreads.items()]
            note = "±: standard deviation over the seeds." if spreads else ""
            yield Table(title="Agreement of the seeds", header=[], cells=cells, notes=[note] if note else [])

    def settings(self) -> Iterator[Table]:
        """Tables of how the run was made."""
        parts = {
            "Recipe": self.record.get("settings", {}),
            "Edits": {**self.saved["config"], "strength": self.saved.get("strength", 1.0)},
            "Base model": self.saved["base_model"],
            "Versions": self.saved.get("versions", {}),
            "Data": self.data or {},
        }
        for title, values in parts.items():
            cells = [[what, shown(value)] for what, value in flat(values)] if isinstance(values, Mapping) else []
            if cells:
                yield Table(title=title, header=[], cells=cells, left=2)


def selection_table(found: Selection) -> Table:
    """The figures of stability selection."""
    free = f"{sum(one.is_free for one in found.exchanges)} of {len(found.exchanges)}"
    cells = [
        ["chosen gates", shown(len(found.chosen))],
        ["halves of the examples", shown(found.halves)],
        ["selected in each half, of gates and decoys", f"{found.q:,} of {found.competitors:,}"],
        ["nominal rate of false gates", shown(found.rate)],
        *([["threshold", shown(found.threshold)]] if found.chosen else []),
        *([["bound on false gates, without assumptions", shown(found.worst_case)]] if found.chosen else []),
        *([["bound on false gates, r-concave", shown(found.r_concave)]] if found.chosen else []),
        *([["false discovery rate by the decoys", shown(found.decoy_rate)]] if found.chosen else []),
        ["groups of interchangeable gates", shown(len(found.groups))],
        *([["exchanges that cost less than their standard error", free]] if found.exchanges else []),
    ]
    note = (
        "The bounds are on gates that a half selects by chance. A head that takes the place of another one in every "
        "half is not such a gate; decoys, and the groups, tell of those."
    )
    return Table(title="How sure the heads are", header=[], cells=cells, notes=[note])


def flat(values: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of nested plain data."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def shown(value: Any) -> str:
    """A value as a short text."""
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "–"}[value]
    if isinstance(value, float):
        return "–" if value != value else f"{value:.4g}"
    if isinstance(value, list | tuple):
        return ", ".join(map(shown, value[:_MOST])) + (f", … ({len(value)})" if len(value) > _MOST else "")
    return f"{value:,}" if isinstance(value, int) else str(value)


def two_digits(value: float) -> str:
    """A number with its two first digits, such as ``0.037``, ``7.4`` and ``120``."""
    return f"{float(f'{value:.2g}'):.15g}"


def _spread(found: Mapping[str, Any]) -> str:
    mean, deviation = found.get("mean"), found.get("std")
    if not isinstance(mean, float) or not isinstance(deviation, float):
        return ", ".join(f"{what} {shown(value)}" for what, value in flat(found))
    values = f" ({shown(found['values'])})" if isinstance(found.get("values"), list) else ""
    return with_error(mean, deviation) + values


def _examples(record: Mapping[str, Any]) -> str | None:
    if "train_examples" not in record:
        return None
    return f"{record['train_examples']:,} to train on, {record.get('valid_examples') or 0:,} to validate on"


def _loss(value: object) -> str | None:
    return f"{value:.4f} {LABELS['loss'].unit}" if isinstance(value, float) else None


def _seconds(value: object) -> str | None:
    return f"{value:,.0f} s" if isinstance(value, int | float) else None


def _object(file: Path) -> dict[str, Any]:
    found = parse_json(_text(file), str(file))
    if not isinstance(found, dict):
        raise HeadEditError(f"{file}: expected an object, found {type(found).__name__}; the file is damaged.")
    return found


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise HeadEditError(f"{file}: cannot be read ({error}).") from None
