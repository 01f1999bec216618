"""Tables: as Markdown for a file, and of rich for a terminal."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from rich.table import Table


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
) -> "Table":
    """A table that a console of rich prints.

    Args:
        title: what stands above it.
        header: the names of the columns; None for a table without a header.
        rows: the cells, of any type; a ``rich.text.Text`` keeps its style.
        left: how many columns are aligned left, the others are aligned right; None for all.
        framed: draw lines around it.
        no_wrap: let no cell take more than one line.
    """
    from rich.box import HEAVY_HEAD
    from rich.markup import escape
    from rich.table import Table
    from rich.text import Text

    cells = [[cell if isinstance(cell, Text) else escape(format_cell(cell)) for cell in row] for row in rows]
    columns = list(header) if header is not None else [""] * max(map(len, cells), default=0)
    table = Table(
        title=None if title is None else escape(title),
        title_justify="left",
        show_header=header is not None,
        box=HEAVY_HEAD if framed else None,
        padding=(0, 1) if framed else (0, 1, 0, 0),
    )
    for i, column in enumerate(columns):
        justify: Literal["left", "right"] = "left" if left is None or i < left else "right"
        table.add_column(escape(column), justify=justify, no_wrap=no_wrap, overflow="fold")
    for row in cells:
        table.add_row(*row)
    return table


def format_cell(value: Any) -> str:
    """A cell: floats up to 1 with three digits, others below 10 with one; blank for None; text as it is."""
    if value is None:
        return ""
    if isinstance(value, float):
        digits = 3 if abs(value) <= 1 else 1 if abs(value) < 10 else 0
        return f"{value:,.{digits}f}"
    return f"{value:,}" if isinstance(value, int) else str(value)
