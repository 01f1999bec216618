"""The result of a bench: settings, rows and a summary as plain data, and as Markdown tables."""

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from headedit.interpret.labels import label
from headedit.io.html import html_block, html_note, html_table
from headedit.io.tables import markdown_table

Row = dict[str, Any]
"""What one run measured, as plain data."""


@dataclass(frozen=True, kw_only=True)
class BenchResult:
    """The outcome of a bench.

    Fields:
        title: what was measured.
        settings: what it was run with.
        rows: one per run.
        summary: one row per group of runs.
        tables: title, header and cells of each table of the Markdown.
    """

    title: str
    settings: dict[str, Any]
    rows: list[Row]
    summary: list[Row]
    tables: list[tuple[str, list[str], list[list[Any]]]]

    def __repr__(self) -> str:
        return (
            f"BenchResult({self.title}: {counted(self.rows, 'run')}; {'; '.join(title for title, *_ in self.tables)})"
        )

    def _repr_html_(self) -> str:
        tables = [
            part
            for title, header, cells in self.tables
            for part in (html_note(title), html_table(header, cells, left=1))
        ]
        return html_block(self.title, *tables)

    def to_dict(self) -> dict[str, Any]:
        """Everything but the tables, which repeat it, as plain data for JSON."""
        return {key: value for key, value in asdict(self).items() if key != "tables"}

    def markdown(self) -> str:
        """The tables as Markdown."""
        parts = [f"# {self.title}"]
        for title, header, cells in self.tables:
            parts += [f"## {title}", markdown_table(header, cells)]
        return "\n\n".join(parts) + "\n"


def counted(things: Sequence[Any], name: str) -> str:
    """A count with its noun: ``1 seed``, ``2 seeds``."""
    return f"{len(things)} {name}{'s' if len(things) != 1 else ''}"


def mean(values: Iterable[float | None]) -> float | None:
    """Mean of the values that are not None; None if there are none."""
    known = [value for value in values if value is not None]
    return float(statistics.fmean(known)) if known else None


def least(values: Iterable[float | None]) -> float | None:
    """The smallest of the values that are not None; None if there are none."""
    return min((value for value in values if value is not None), default=None)


def whole_mean(values: Iterable[float | None]) -> int | None:
    """Mean of the values that are not None, rounded to a whole number."""
    found = mean(values)
    return None if found is None else round(found)


def table_of(columns: Sequence[str], rows: Iterable[Row]) -> tuple[list[str], list[list[Any]]]:
    """Header and cells of a table of rows, whose columns are keys of the rows with a label."""
    return [label(key) for key in columns], [[row.get(key) for key in columns] for row in rows]


def grouped(rows: Iterable[Row], *keys: str) -> dict[tuple[Any, ...], list[Row]]:
    """Rows by the values of some keys, in the order in which they first come."""
    found: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        found.setdefault(tuple(row[key] for key in keys), []).append(row)
    return found
