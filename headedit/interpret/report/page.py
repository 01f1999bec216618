"""``report``: puts a run's numbers, pictures and heads into one HTML file."""

import base64
import hashlib
import math
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from headedit.interpret.labels import head_name, with_error
from headedit.interpret.report.columns import Column, Key, columns_of, head_rows, is_missing, ordered
from headedit.interpret.report.folder import RunFolder, Table, shown, two_digits
from headedit.interpret.report.head_csv import head_csv
from headedit.interpret.report.heads import colour_rules, maps, measures
from headedit.interpret.report.origin import origin, sentence
from headedit.interpret.report.pictures import pictures

if TYPE_CHECKING:
    import pandas  # type: ignore[import-untyped,unused-ignore]

_FOLDER = Path(__file__).resolve().parent
_FEW = 64
_CELLS = 40  # rem that the cells of a map take at most


def report(
    run: "str | PathLike[str]",
    *,
    evidence: "pandas.DataFrame | None" = None,
    tables: Sequence[Table] = (),
    command: str | None = None,
) -> str:
    """Makes one self-contained HTML page of a run: it loads nothing, and its content policy forbids it to.

    The table of heads begins with the edited ones, by their effect where it was measured, and can be saved as CSV. A
    small script sorts it, copies it, and makes the map work by keyboard; without scripts every cell of the map links
    to its row. The page and its pictures, which are SVG, follow the reader's light or dark scheme.

    Args:
        run: the folder that ``headedit.fit`` or ``headedit train`` wrote; the model is not needed.
        evidence: the frame that ``headedit.evidence`` returns for the run's edits; it is shown in the table of heads.
        tables: further measurements, such as evaluations.
        command: that made the page, to be named on it.

    Returns:
        The page's text.

    Raises:
        HeadEditError: the folder holds no edits or no history, a file there is damaged, or the evidence was
            measured on other edits.
    """
    found = RunFolder.read(Path(run))
    rows = ordered(head_rows(found.source, evidence, found.selection))
    columns = columns_of(rows)
    script = (_FOLDER / "page.js").read_text(encoding="utf-8").strip()
    environment = Environment(
        loader=FileSystemLoader(_FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(cell=_cell, order=_order, anchor=_anchor, name=_name)
    return environment.get_template("page.html").render(
        run=found,
        name_of_run=found.path.resolve().name,
        sentence=sentence(found),
        origin=origin(found, command),
        measured=[*tables, *found.measured()],
        evidence=None if evidence is None else evidence.attrs,
        rows=rows,
        columns=columns,
        csv=base64.b64encode(head_csv(rows, columns).encode()).decode(),
        few=len(rows) <= _FEW,
        maps=maps(found.source),
        measures=measures(rows, columns),
        cell_size=lambda heads: f"{min(2.0, max(0.6, _CELLS / heads)):.2f}rem",
        pictures=pictures(found, evidence),
        style=f"{(_FOLDER / 'page.css').read_text(encoding='utf-8').strip()}\n{colour_rules()}",
        script=script,
        policy=_policy(script),
    )


def _policy(script: str) -> str:
    """The page's content policy: it allows its own script, by hash, its own styles and pictures, and nothing else."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"


def _anchor(key: Key) -> str:
    kind, layer, head = key
    return f"head-{kind}-{layer}-{head}"


def _name(key: Key, several: bool) -> str:
    kind, layer, head = key
    return f"{head_name(layer, head)}{', ' + kind if several else ''}"


def _order(column: Column, row: Mapping[str, Any]) -> str:
    """The text that a cell is sorted by; empty where there is no value."""
    value = row.get(column.key)
    if column.form == "head":
        return f"{row['layer']}.{row['head']:06d}"
    if is_missing(value):
        return ""
    if column.form == "tokens":
        return str(value[0]) if value else ""
    return f"{value:.9g}" if isinstance(value, float) else str(value)


def _cell(column: Column, row: Mapping[str, Any]) -> str:
    """The text of a cell that holds no tokens: numbers with two digits, or with as many as their error allows."""
    value, error = row.get(column.key), row.get(column.error)
    if column.form == "head":
        return head_name(row["layer"], row["head"])
    if is_missing(value):
        return "–"
    if not isinstance(value, float):
        return shown(value)
    sign = "+" if column.form == "signed" and value > 0 else ""
    if value and isinstance(error, float) and 0 < error < math.inf:
        return sign + with_error(value, error)
    return sign + two_digits(value)
