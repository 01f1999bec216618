"""HTML for notebooks: a table and a block, with inline styles and the colours of the page around them."""

from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

from headedit.io.tables import format_cell

_TABLE = "border-collapse:collapse;border:none;margin:2px 0;font-size:inherit;color:inherit"
_CELL = "padding:1px 10px 1px 0;text-align:{align};border:none"


def html_block(title: str, *parts: str) -> str:
    """A bold title above some HTML, as wide as a notebook's cell."""
    heading = f"<div style='font-weight:bold;margin-bottom:4px'>{escape(title)}</div>"
    return f"<div style='font-size:13px;line-height:1.4;max-width:760px'>{heading}{''.join(parts)}</div>"


def html_note(text: str) -> str:
    """A line of text in a block."""
    return f"<div style='margin-top:6px'>{escape(text)}</div>"


def html_table(
    header: Sequence[str], rows: Iterable[Sequence[Any]], *, left: int | None = None, strong: int | None = None
) -> str:
    """A table.

    Args:
        header: the names of the columns; empty for a table without them.
        rows: the cells, of any type.
        left: how many columns are aligned left; by default all without a header, and none with one.
        strong: index of a row in bold letters; None for none.
    """
    first = left if left is not None else 0 if header else None

    def style(column: int) -> str:
        return _CELL.format(align="left" if first is None or column < first else "right")

    head = "".join(
        f"<th style='{style(i)};font-weight:normal;opacity:.7'>{escape(text)}</th>" for i, text in enumerate(header)
    )
    lines = [
        "".join(
            f"<td style='{style(i)}{';font-weight:bold' if number == strong else ''}'>{escape(format_cell(cell))}</td>"
            for i, cell in enumerate(row)
        )
        for number, row in enumerate(rows)
    ]
    body = "".join(f"<tr style='background:none'>{line}</tr>" for line in lines)
    top = f"<thead style='border:none'><tr>{head}</tr></thead>" if header else ""
    return f"<table style='{_TABLE}'>{top}<tbody>{body}</tbody></table>"
