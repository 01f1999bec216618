"""The command ``headedit bench gpu``: what is measured on a GPU, in parts with time limits."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from headedit.cli.next_step import say_next
from headedit.cli.shared import console, listed, print_files, say, write_whole
from headedit.errors import HeadEditError

if TYPE_CHECKING:
    from headedit.bench.gpu.record import Data


def gpu(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for all files that are written.")] = Path(
        "headedit-gpu"
    ),
    parts: Annotated[
        str | None,
        typer.Option(
            "--parts",
            help="What to measure, in this order.  [default: tests,cost,decoding,memory; with --compare, compare too]",
        ),
    ] = None,
    limit: Annotated[
        str | None,
        typer.Option(
            "--limit",
            help="Seconds per part, such as 60, or cost=120.  [default: "
            "tests=100,cost=130,decoding=220,memory=40,compare=300]",
        ),
    ] = None,
    shapes: Annotated[
        str, typer.Option("--shapes", help="Models with random weights: some of 1B, 8B and, to try out, tiny.")
    ] = "1B,8B",
    device: Annotated[str, typer.Option("--device", help="cuda, cuda:0, …; cpu to try the command out.")] = "cuda",
    tests: Annotated[Path, typer.Option("--tests", help="File of the part tests.")] = Path("tests/test_gpu.py"),
    compare: Annotated[
        Path | None,
        typer.Option(
            "--compare", help="YAML file of `headedit compare` on this GPU, whose cells the part compare runs."
        ),
    ] = None,
    jobs: Annotated[int, typer.Option("--jobs", min=1, help="Cells side by side in the part compare.")] = 8,
) -> None:
    """Measure on a GPU: tests, costs and decoding at 1B and 8B, the memory plan, and a comparison of your own.

    Each part runs in a process that is ended at its limit. What it has measured is on disk at every moment, in the
    folder's PART.json; the same command resumes there. A summary of all parts is in gpu.md. The exit code is 1 where
    something failed or was ended.

    Example: `headedit bench gpu --output gpu --parts tests,decoding --limit decoding=120`
    """
    import torch

    from headedit.bench.cost.shapes import check_names
    from headedit.bench.gpu import LIMITS, page, run_parts
    from headedit.bench.gpu.record import is_complete
    from headedit.bench.gpu.runner import parts_of
    from headedit.bench.gpu.sizes import NAMES
    from headedit.io.files import check_writable

    chosen = parts or ",".join(part for part in LIMITS if part != "compare" or compare is not None)
    limits = parts_of(listed(chosen), limit)
    check_names(listed(shapes), NAMES, "--shapes")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise HeadEditError("There is no GPU here. To try the command out: --device cpu --shapes tiny.")
    if "tests" in limits and not tests.is_file():
        raise HeadEditError(f"--tests: there is no file {tests}; tests are in the repository, not in the package.")
    own = {}
    if "compare" in limits:
        own["compare"] = _comparison(compare) | {"jobs": jobs}
    folder = check_writable(output)
    settings = {"device": device, "shapes": listed(shapes), "tests": str(tests)}
    found = run_parts(folder, settings, limits, own=own, report=_tell)
    write_whole(folder / "gpu.md", page(folder))
    print_files([*(folder / f"{part}.json" for part in limits), folder / "gpu.md"])
    say_next(f"read {folder / 'gpu.md'}")
    if not all(is_complete(data) for data in found):
        raise typer.Exit(1)


def _comparison(file: Path | None) -> dict[str, str]:
    """The settings of the part ``compare``, whose file is checked before any part is run."""
    from headedit.bench.compare.config import CompareConfig
    from headedit.bench.gpu.comparison import in_order
    from headedit.evaluation.answers.predictions import digest

    if file is None:
        raise HeadEditError("--parts: compare needs --compare FILE, as `headedit compare` takes it.")
    cells = in_order(CompareConfig.read(file))
    for cell in cells:
        cell.row()  # refuses a folder that holds another comparison
    return {"comparison": str(file), "cells": digest([cell.key for cell in cells])}


def _tell(data: "Data", skipped: bool) -> None:
    from headedit.bench.gpu.record import failures

    if skipped:
        console.print(f"{data['part']}: was complete")
        return
    failed = failures(data)
    counts = f"{len(data['items'])} items, {len(failed)} failed"
    say(f"{data['part']}: {data['state']} after {data['seconds']:.0f} s, {counts}")
    for name in failed:
        item = data["items"][name]
        said = str(item.get("error") or item.get("message")).strip().splitlines()
        say(f"  failed: {escape(name)}: {escape(said[-1] if said else '')}")
    if data["reason"]:
        say(escape(data["reason"]))
