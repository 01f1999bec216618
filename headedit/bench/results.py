"""What the benches return: settings, rows and a summary as plain data, and as Markdown tables."""

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from headedit.bench.parallel import Row
from headedit.io.tables import markdown_table


@dataclass(frozen=True, kw_only=True)
class BenchResult:
    """The outcome of a bench.

    Fields:
        title: what was measured.
        settings: with which numbers.
        rows: one a run.
        summary: one a group of runs.
        tables: title, header and cells of each table of the Markdown.
    """

    title: str
    settings: dict[str, Any]
    rows: list[Row]
    summary: list[Row]
    tables: list[tuple[str, list[str], list[list[Any]]]]

    def to_dict(self) -> dict[str, Any]:
        """All but the tables, which repeat them, as plain data for JSON."""
        return {key: value for key, value in asdict(self).items() if key != "tables"}

    def markdown(self) -> str:
        """The tables."""
        parts = [f"# {self.title}"]
        for title, header, cells in self.tables:
            parts += [f"## {title}", markdown_table(header, cells)]
        return "\n\n".join(parts) + "\n"


def counted(things: Sequence[Any], name: str) -> str:
    """``1 seed``, ``2 seeds``."""
    return f"{len(things)} {name}{'s' if len(things) != 1 else ''}"


def mean(values: Iterable[float | None]) -> float | None:
    """Mean of what is there; None where nothing is."""
    there = [value for value in values if value is not None]
    return float(statistics.fmean(there)) if there else None


def least(values: Iterable[float | None]) -> float | None:
    """The smallest of what is there; None where nothing is."""
    return min((value for value in values if value is not None), default=None)


def whole_mean(values: Iterable[float | None]) -> int | None:
    """Mean of what is there, rounded to a whole number."""
    found = mean(values)
    return None if found is None else round(found)


def table_of(columns: Sequence[tuple[str, str]], rows: Iterable[Row]) -> tuple[list[str], list[list[Any]]]:
    """Header and cells of a table of rows: of each column the title, and the key whose value it shows."""
    return [title for title, _ in columns], [[row.get(key) for _, key in columns] for row in rows]


def grouped(rows: Iterable[Row], *keys: str) -> dict[tuple[Any, ...], list[Row]]:
    """Rows by the values of some keys, in the order in which they first come."""
    found: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        found.setdefault(tuple(row[key] for key in keys), []).append(row)
    return found
