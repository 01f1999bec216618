"""Tables as Markdown."""

from collections.abc import Iterable, Sequence
from typing import Any


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[Any]], *, left: int = 1) -> str:
    """A Markdown table whose first ``left`` columns are aligned left and whose others are aligned right."""
    rule = ["---"] * left + ["---:"] * (len(header) - left)
    cells = [header, rule, *([format_cell(cell) for cell in row] for row in rows)]
    lines = (" | ".join(cell.replace("|", "\\|") for cell in line) for line in cells)
    return "\n".join(f"| {line} |" for line in lines)


def format_cell(value: Any) -> str:
    """A cell: floats up to 1 with three digits, others below 10 with one; blank for None; text as it is."""
    if value is None:
        return ""
    if isinstance(value, float):
        digits = 3 if abs(value) <= 1 else 1 if abs(value) < 10 else 0
        return f"{value:,.{digits}f}"
    return f"{value:,}" if isinstance(value, int) else str(value)
