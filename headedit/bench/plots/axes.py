"""What the pictures of benches share: a line per method with its band, and the colour and marker of every method."""

from collections.abc import Sequence

from matplotlib.axes import Axes

from headedit.bench.results import Row
from headedit.errors import HeadEditError
from headedit.interpret.palette import GRID, METHODS, OTHER_METHOD

MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
WIDTH = 9.0
"""Inches of a figure, as wide as a notebook."""

_MARKER_OF = dict(zip(METHODS, (*MARKERS, "."), strict=True))


def method_lines(axis: Axes, rows: Sequence[Row], by: str, x: str, y: str) -> None:
    """Draws a line per method through the means over its runs, and a band from the worst run to the best.

    Args:
        axis: to draw into.
        rows: of a bench.
        by: the key of the method's name.
        x: the key of the number of examples.
        y: the key of a share between 0 and 1.
    """
    sizes = sorted({row[x] for row in rows})
    for name in dict.fromkeys(row[by] for row in rows):
        found = {size: [row[y] for row in rows if row[by] == name and row[x] == size] for size in sizes}
        measured = [size for size in sizes if found[size]]
        means = [sum(found[size]) / len(found[size]) for size in measured]
        colour, marker = method_style(name)
        style = ":" if name == "unedited" else "-"
        axis.plot(
            measured, means, color=colour, marker=marker, markersize=5, linewidth=1.5, linestyle=style, label=name
        )
        low, high = ([bound(found[size]) for size in measured] for bound in (min, max))
        axis.fill_between(measured, low, high, color=colour, alpha=0.12, linewidth=0)
    axis.set_xscale("log")
    axis.set_xticks(sizes, [str(size) for size in sizes])
    axis.minorticks_off()
    axis.set_ylim(-0.03, 1.03)
    axis.grid(color=GRID, linewidth=0.6)
    axis.set_axisbelow(True)


def method_style(name: str) -> tuple[str, str]:
    """Colour and marker of a method, the same in every picture."""
    return METHODS.get(name, OTHER_METHOD), _MARKER_OF.get(name, MARKERS[-1])


def check_rows(rows: Sequence[Row]) -> None:
    """Raises a HeadEditError where there is nothing to draw."""
    if not rows:
        raise HeadEditError("The bench has no rows, so there is nothing to draw.")
