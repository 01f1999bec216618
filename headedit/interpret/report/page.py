"""``report``: puts a run's numbers, pictures and heads into one HTML file."""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from headedit.interpret.report.columns import Column, Key, columns_of, head_rows, is_missing
from headedit.interpret.report.folder import RunFolder, Table, shown
from headedit.interpret.report.heads import colour_rules, maps, measures
from headedit.interpret.report.pictures import pictures
from headedit.version import __version__

if TYPE_CHECKING:
    import pandas  # type: ignore[import-untyped,unused-ignore]

_FOLDER = Path(__file__).resolve().parent
_FEW = 64
_CELLS = 40  # rem that the cells of a map take at most


def report(
    run: "str | PathLike[str]", *, evidence: "pandas.DataFrame | None" = None, tables: Sequence[Table] = ()
) -> str:
    """Makes one self-contained HTML page of a run: it loads nothing, and its content policy forbids it to.

    A small script sorts the table of heads and makes the map work by keyboard; without scripts the table is in the
    order of the heads, and every cell of the map links to its row. The page follows the reader's light or dark scheme.

    Args:
        run: the folder that ``headedit.fit`` or ``headedit train`` wrote; the model is not needed.
        evidence: the frame that ``headedit.evidence`` returns for the run's edits; it is shown in the table of heads.
        tables: further measurements, such as evaluations.

    Returns:
        The page's text.

    Raises:
        HeadEditError: the folder holds no edits or no history, a file there is damaged, or the evidence was
            measured on other edits.
    """
    found = RunFolder.read(Path(run))
    rows = head_rows(found.source, evidence, found.selection)
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
        version=__version__,
        measured=[*tables, *found.measured()],
        evidence=None if evidence is None else evidence.attrs,
        rows=rows,
        columns=columns,
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
    return f"layer {layer}, {kind + ' ' if several else ''}head {head}"


def _order(column: Column, row: Mapping[str, Any]) -> str:
    """The text that a cell is sorted by; empty where there is no value."""
    value = row.get(column.key)
    if is_missing(value):
        return ""
    if column.form == "tokens":
        return str(value[0]) if value else ""
    return f"{value:.9g}" if isinstance(value, float) else str(value)


def _cell(column: Column, row: Mapping[str, Any]) -> str:
    """The text of a cell that holds no tokens."""
    value = row.get(column.key)
    if is_missing(value):
        return "–"
    if column.form == "signed":
        return "0" if value == 0 else f"{value:+.3g}"
    return f"{value:.3g}" if isinstance(value, float) else shown(value)
