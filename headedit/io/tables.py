"""Tables: as Markdown for a file, and of rich for a terminal."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from headedit.io.fitted_table import FittedTable


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[Any]], *, left: int = 1) -> str:
    """A Markdown table.

    Args:
        header: the names of the columns.
        rows: the cells, of any type.
        left: how many columns are aligned left; the others are aligned right.
    """
    rule = ["---"] * left + ["---:"] * (len(header) - left)
    cells = [header, rule, *([format_cell(cell) for cell in row] for row in rows)]
    lines = (" | ".join(cell.replace("|", "\\|") for cell in line) for line in cells)
    return "\n".join(f"| {line} |" for line in lines)


def rich_table(
    title: str | None,
    header: Sequence[str] | None,
    rows: Iterable[Sequence[Any]],
    *,
    left: int | None = 1,
    framed: bool = False,
    no_wrap: bool = False,
) -> "FittedTable":
    """A table that a console of rich prints, at any width without cutting a number.

    Args:
        title: what stands above it.
        header: the names of the columns; None for a table without a header.
        rows: the cells, of any type; a ``rich.text.Text`` keeps its style.
        left: how many columns are aligned left, the others are aligned right; None for all.
        framed: draw lines around it.
        no_wrap: let no cell take more than one line.
    """
    from rich.text import Text

    from headedit.io.fitted_table import FittedTable

    cells = [[cell if isinstance(cell, Text) else format_cell(cell) for cell in row] for row in rows]
    columns = len(header) if header is not None else max(map(len, cells), default=0)
    return FittedTable(
        title=title,
        header=header,
        rows=[[*row, *[""] * (columns - len(row))] for row in cells],
        left=columns if left is None else left,
        framed=framed,
        no_wrap=no_wrap,
    )


def format_cell(value: Any) -> str:
    """A cell: floats up to 1 with three decimals, others below 10 with one, the rest with none; blank for None.

    Thousands are set off by commas, and text is as it is.
    """
    if value is None:
        return ""
    if isinstance(value, float):
        digits = 3 if abs(value) <= 1 else 1 if abs(value) < 10 else 0
        return f"{value:,.{digits}f}"
    return f"{value:,}" if isinstance(value, int) else str(value)
