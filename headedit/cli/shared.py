"""What the commands share: options and how they are read, writing files, printing sentences, tables and errors."""

import logging
import shutil
import sys
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console
from rich.markup import escape

from headedit.errors import HeadEditError
from headedit.io.tables import rich_table
from headedit.io.wrapping import wrap, wrap_command

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from headedit.bench.results import BenchResult

console = Console(highlight=False)

HELP_MARKUP: Literal["markdown"] | None = "markdown" if console.width >= 100 else None
"""How help is shown: in a terminal of less than 100 columns as plain text, for typer's tables cut names of options."""


class Dtype(str, Enum):
    """The data types that a model can be loaded in."""

    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


Model = Annotated[str, typer.Option("--model", "-m", help="Folder or hub id of a causal LM.")]
DtypeOption = Annotated[Dtype, typer.Option("--dtype", help="Dtype to load the model in.")]
Device = Annotated[str | None, typer.Option("--device", help="cpu, cuda:0, …  [default: a GPU if there is one]")]
Limit = Annotated[int | None, typer.Option("--limit", min=1, help="Use at most this many records, sampled by --seed.")]
Skip = Annotated[bool, typer.Option("--skip-broken", help="Skip broken records and report them, instead of stopping.")]
Fields = Annotated[
    str | None,
    typer.Option(
        "--fields", help="What the fields are called in the records, such as prompt=question,response=answer."
    ),
]
Seed = Annotated[int, typer.Option("--seed", help="Random seed.")]
Edits = Annotated[str | None, typer.Option("--edits", "-e", help="Folder or hub id of saved edits.")]
SpecFile = Annotated[Path | None, typer.Option("--spec", help="Spec file for an architecture without one.")]


def write_json(path: Path, data: dict[str, Any]) -> None:
    """Writes data as JSON; the file is complete or not written at all."""
    import json

    write_whole(path, json.dumps(data, indent=2) + "\n")


def write_whole(path: Path, text: str) -> None:
    """Writes a text file, creating its folder; the file is complete or not written at all."""
    from headedit.io.files import write_atomically

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, text.encode())
    except OSError as error:
        raise HeadEditError(f"{path}: cannot be written ({error.strerror}).") from None


def narrow_width() -> int | None:
    """The width of the terminal, at which lines are broken; None where output is for a file or another program."""
    return console.width if console.is_terminal else None


def say(text: str) -> None:
    """Prints a sentence, with rich's markup, in lines of a narrow terminal or as one line for a file."""
    console.print(text, soft_wrap=narrow_width() is None)


def say_plain(text: str) -> None:
    """The same for text without markup; what begins with spaces is indented in all its lines."""
    width = narrow_width()
    if width is not None:
        text = wrap(text, width, indent=" " * (len(text) - len(text.lstrip())))
    console.print(text, markup=False, soft_wrap=True)


def tell_error(message: str) -> None:
    """Prints a message on stderr, in lines of a narrow terminal; a command after ``To …:`` stays one for the shell."""
    print(_in_lines(message), file=sys.stderr)


class NarrowFormatter(logging.Formatter):
    """Formats what is logged as ``tell_error`` prints it."""

    def format(self, record: logging.LogRecord) -> str:
        """The message, in lines of a narrow terminal."""
        return _in_lines(super().format(record))


def _in_lines(message: str) -> str:
    if not sys.stderr.isatty():
        return message
    width = shutil.get_terminal_size().columns
    return "\n".join(_narrow(line, width) for line in message.split("\n"))


def _narrow(line: str, width: int) -> str:
    lead, command, rest = line.partition("headedit ")
    if command and lead.startswith(("To ", "For ")) and lead.endswith(": "):
        return wrap_command(lead, command + rest, width)
    return wrap(line, width)


def print_rows(title: str, rows: list[tuple[str, str]]) -> None:
    """Prints (what, value) rows as a table."""
    console.print(rich_table(title, None, rows, left=None, framed=True))


def print_files(files: list[Path]) -> None:
    """Prints which files were written."""
    for file in files:
        console.print(f"wrote {escape(str(file))}", soft_wrap=True)


def listed(text: str) -> list[str]:
    """Splits a list at its commas."""
    return [part.strip() for part in text.split(",") if part.strip()]


def named(text: str | None, option: str) -> dict[str, str] | None:
    """Splits ``a=b,c=d`` into names and what they stand for; None where nothing is given."""
    if text is None:
        return None
    pairs = [part.partition("=") for part in listed(text)]
    found = {name.strip(): other.strip() for name, _, other in pairs}
    if not found or len(found) < len(pairs) or not all(name and other for name, other in found.items()):
        raise HeadEditError(f"{option}: found '{text}', expected names such as prompt=question,response=answer.")
    return found


def whole_numbers(text: str, option: str) -> list[int]:
    """Splits a list of whole numbers at its commas."""
    parts = listed(text)
    if not parts or not all(part.isdecimal() for part in parts):
        raise HeadEditError(f"{option}: found '{text}', expected whole numbers separated by commas, such as 8,200.")
    return [int(part) for part in parts]


def write_bench(result: "BenchResult", folder: Path, name: str, figure: "Figure | None") -> list[Path]:
    """Prints the tables of a benchmark and writes them as JSON and Markdown, and its picture as PNG."""
    for title, header, cells in result.tables:
        console.print(rich_table(f"{result.title}: {title}", [name.replace(" ", "\n") for name in header], cells))
    files = [folder / f"{name}.json", folder / f"{name}.md"]
    write_json(files[0], result.to_dict())
    write_whole(files[1], result.markdown())
    if figure is not None:
        files.append(folder / f"{name}.png")
        figure.savefig(files[-1], dpi=150)
    return files
