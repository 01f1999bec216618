"""A table that fits a terminal of any width: cells are wrapped, and where that is not enough, rows become lists."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from rich.box import HEAVY_HEAD
from rich.cells import cell_len
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from headedit.io.wrapping import least_width, wrap

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType

Cell = str | Text

_TALL = 4  # lines of a cell


@dataclass(frozen=True, kw_only=True)
class FittedTable:
    """A table for a console of rich, in which no number is cut, however narrow the console is.

    Fields:
        title: what stands above it.
        header: the names of the columns; None for a table without a header.
        rows: the cells; a ``Text`` keeps its style.
        left: how many columns are aligned left, the others are aligned right.
        framed: draw lines around it.
        no_wrap: let no cell take more than its own lines.
    """

    title: str | None
    header: Sequence[str] | None
    rows: Sequence[Sequence[Cell]]
    left: int
    framed: bool = False
    no_wrap: bool = False

    def __rich_console__(self, console: "Console", options: "ConsoleOptions") -> "Iterator[RenderableType]":
        """The table, or lists of its cells where the narrowest table is wider than the console."""
        width = options.max_width
        if self.title is not None:
            yield Text(wrap(self.title, width), style="italic")
        widths = self._widths(width)
        if widths is not None:
            yield self._table(widths)
            return
        for row in self.rows:
            yield from self._list(row, width)
            yield Text("")

    def _widths(self, width: int) -> list[int] | None:
        """The width of each column, the widest ones made narrower; None where that cuts something."""
        columns = list(zip(*([self.header] if self.header is not None else []), *self.rows, strict=True))
        if not columns:
            return []
        found = [max(cell_len(line) for cell in column for line in str(cell).split("\n")) for column in columns]
        least = [
            natural if self.no_wrap else max(least_width(str(cell)) for cell in column)
            for natural, column in zip(found, columns, strict=True)
        ]
        free = width - (3 * len(columns) + 1 if self.framed else len(columns))
        if sum(least) > free:
            return None
        while sum(found) > free:
            widest = max((i for i in range(len(found)) if found[i] > least[i]), key=found.__getitem__)
            found[widest] -= 1
        return None if self._is_tall(found) else found

    def _is_tall(self, widths: Sequence[int]) -> bool:
        """Whether words are cut over so many lines that a list of the cells is easier to read."""
        cells = [(str(cell), wide) for row in self.rows for cell, wide in zip(row, widths, strict=True)]
        cut = [(cell, wide) for cell, wide in cells if any(cell_len(word) > wide for word in cell.split())]
        return self.header is not None and any(wrap(cell, wide).count("\n") + 1 >= _TALL for cell, wide in cut)

    def _table(self, widths: Sequence[int]) -> Table:
        table = Table(
            show_header=self.header is not None,
            box=HEAVY_HEAD if self.framed else None,
            padding=(0, 1) if self.framed else (0, 1, 0, 0),
        )
        for i, (name, wide) in enumerate(zip(self.header or [""] * len(widths), widths, strict=True)):
            justify: Literal["left", "right"] = "left" if i < self.left else "right"
            table.add_column(escape(wrap(name, wide)), justify=justify, overflow="fold", width=wide)
        for row in self.rows:
            table.add_row(
                *(
                    cell if isinstance(cell, Text) else escape(wrap(cell, wide))
                    for cell, wide in zip(row, widths, strict=True)
                )
            )
        return table

    def _list(self, row: Sequence[Cell], width: int) -> "Iterator[RenderableType]":
        """A row as a line per cell, each after the name of its column."""
        names = [" ".join(name.split()) for name in self.header or [""] * len(row)]
        for i, (name, cell) in enumerate(zip(names, row, strict=True)):
            if str(cell):
                text = f"{name}: {cell}" if name else str(cell)
                yield Text(
                    wrap(text if i == 0 else f"  {text}", width, indent="    "), style=getattr(cell, "style", "")
                )
