"""What the commands share: reading a data file, writing a report, printing tables and file names."""

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from headedit.errors import HeadEditError
from headedit.io.tables import rich_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from headedit.bench.results import BenchResult

console = Console(highlight=False)


class Dtype(str, Enum):
    """Dtypes that a model can be loaded in."""

    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


Model = Annotated[str, typer.Option("--model", "-m", help="Folder or hub id of a causal LM.")]
Data = Annotated[
    Path, typer.Option("--data", "-d", help="JSON list or JSON lines with instruction/answer or prompt/response.")
]
DtypeOption = Annotated[Dtype, typer.Option("--dtype", help="Dtype to load the model in.")]
Device = Annotated[str | None, typer.Option("--device", help="cpu, cuda:0, …  [default: a GPU if there is one]")]
Limit = Annotated[int | None, typer.Option("--limit", min=1, help="Use this many records, drawn by the seed.")]
Skip = Annotated[bool, typer.Option("--skip-broken", help="Leave broken records out and report them.")]
Seed = Annotated[int, typer.Option("--seed", help="Seed of everything random.")]


def read_pairs(path: Path, limit: int | None, seed: int, skip_broken: bool) -> list[tuple[str, str]]:
    """The records of a file, perhaps a sample of them; those that are broken and left out are printed."""
    from headedit.data.records import read_records
    from headedit.data.splits import sample

    records = read_records(path, skip_broken=skip_broken)
    for message in records.broken[:5]:
        console.print(f"[yellow]left out:[/] {escape(message)}")
    if records.broken:
        console.print(f"{len(records.broken)} broken records of {path} are left out.")
    return sample(records.pairs, limit, seed)


def write_json(path: Path, data: dict[str, Any]) -> None:
    """Writes a report, whole or not at all."""
    import json

    write_whole(path, json.dumps(data, indent=2) + "\n")


def write_whole(path: Path, text: str) -> None:
    """Writes a file, whole or not at all, in a folder that is made if it is not there."""
    from headedit.io.files import write_atomically

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, text.encode())
    except OSError as error:
        raise HeadEditError(f"{path}: cannot be written ({error.strerror}).") from None


def print_rows(title: str, rows: list[tuple[str, str]]) -> None:
    """Prints (what, value) rows as a table."""
    console.print(rich_table(title, None, rows, left=None, framed=True))


def print_files(files: list[Path]) -> None:
    """Prints which files were written."""
    for file in files:
        console.print(f"wrote {escape(str(file))}", soft_wrap=True)


def listed(text: str) -> list[str]:
    """The parts of a list with commas."""
    return [part.strip() for part in text.split(",") if part.strip()]


def whole_numbers(text: str, option: str) -> list[int]:
    """The whole numbers of a list with commas."""
    parts = listed(text)
    if not parts or not all(part.isdecimal() for part in parts):
        raise HeadEditError(f"{option}: found '{text}', expected whole numbers with commas between, such as 8,200.")
    return [int(part) for part in parts]


def write_bench(result: "BenchResult", folder: Path, name: str, figure: "Figure | None") -> list[Path]:
    """Prints the tables, and writes them as JSON and Markdown, and the picture."""
    for title, header, cells in result.tables:
        console.print(rich_table(f"{result.title}: {title}", [name.replace(" ", "\n") for name in header], cells))
    files = [folder / f"{name}.json", folder / f"{name}.md"]
    write_json(files[0], result.to_dict())
    write_whole(files[1], result.markdown())
    if figure is not None:
        files.append(folder / f"{name}.png")
        figure.savefig(files[-1], dpi=150)
    return files
