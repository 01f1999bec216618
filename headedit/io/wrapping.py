"""Text in lines of a width, as a narrow terminal needs it; a number is never cut."""

import re
import shlex

from rich.cells import cell_len

_BREAKS = re.compile(r"(?<=[/\\_;=|])|(?<=[.,:])(?!\d)|(?<=[a-zA-Z]{2}-)")
"""Places where a word may be broken: not at the point, comma or sign of a number."""

LONGEST_WORD = 16
"""A word without a digit that is longer than this may be broken anywhere."""


def wrap(text: str, width: int, *, indent: str = "") -> str:
    """Breaks lines at spaces; a word that is too long after ``/``, ``_`` and the like, and never inside a number.

    Args:
        text: the text; its own lines stay apart.
        width: cells of a line. A number that is wider has a line of its own.
        indent: what each line but the first begins with.
    """
    lines: list[str] = []
    for line in text.split("\n"):
        lines += _wrapped(line, width, indent if lines else "", indent)
    return "\n".join(lines)


def wrap_command(lead: str, command: str, width: int) -> str:
    """A command after its lead, in lines that a shell reads as one: each but the last ends with a backslash."""
    line = f"{lead}{command}"
    if cell_len(line) <= width:
        return line
    lines = [lead.rstrip()]
    now = " "
    for word in map(shlex.quote, shlex.split(command)):
        if now.strip() and cell_len(f"{now} {word}") > width - 2:
            lines.append(f"{now} \\")
            now = "   "
        now += f" {word}"
    return "\n".join([*lines, now])


def least_width(text: str) -> int:
    """The cells of the longest part of a text that ``wrap`` does not break where it need not."""
    widths = [0]
    for word in text.split():
        for piece in _pieces(word):
            wide = cell_len(piece)
            widths.append(wide if any(map(str.isdigit, piece)) else min(wide, LONGEST_WORD))
    return max(widths)


def _wrapped(line: str, width: int, first: str, indent: str) -> list[str]:
    found, now = [], first + line[: len(line) - len(line.lstrip())]
    begun = False  # whether the line holds a word
    for word in line.split():
        if begun and cell_len(f"{now} {word}") > width:
            found.append(now)
            now, begun = indent, False
        for piece in [word] if cell_len(now) + cell_len(word) + begun <= width else _pieces(word, width - len(indent)):
            if piece is not word and now.strip() and cell_len(now) + cell_len(piece) > width:
                found.append(now)
                now = indent
            now += f" {piece}" if begun else piece
            begun = False
        begun = True
    return [*found, now]


def _pieces(word: str, width: int = 0) -> list[str]:
    """The parts of a word between which it may be broken; with a width, those without a digit are cut to it."""
    parts = [part for part in _BREAKS.split(word) if part]
    if width <= 0:
        return parts
    cut = []
    for part in parts:
        if any(map(str.isdigit, part)):
            cut.append(part)
        else:
            cut += [part[i : i + width] for i in range(0, len(part), width)]
    return cut
