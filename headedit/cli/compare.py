"""The command ``headedit compare``: our recipes and their peers on a user's model and tasks, in one table."""

import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from headedit.cli.dry_run import refuse
from headedit.cli.next_step import print_next, say_next
from headedit.cli.shared import console, print_files, say_plain, write_bench, write_json, write_whole
from headedit.io.tables import rich_table

if TYPE_CHECKING:
    from headedit.bench.results import BenchResult

_NAME = "compare"
_SEEDS = 3  # with fewer, more are advised


def compare(
    file: Annotated[
        Path, typer.Argument(metavar="COMPARISON", help="YAML file: model, tasks, methods, sizes, seeds, output.")
    ],
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="A field of the comparison: key=value; may be repeated.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check files and model, list all cells; train nothing.")
    ] = False,
) -> None:
    """Compare recipes with LoRA and other methods on your model and examples: score, test, cost, in one table.

    Every method gets the same examples, prompts and passes over them. Peers choose their learning rate on held-out
    training examples, never on the test, and the time of every tried rate counts. Run the same command again to
    resume: finished cells are kept, and the one that was stopped begins again.

    Example: `headedit compare compare.yaml --set model.name=./my-model --set sizes=[24]`
    """
    from headedit.bench.compare.config import CompareConfig
    from headedit.bench.compare.dry_run import problems
    from headedit.bench.compare.run import compare as run
    from headedit.bench.compare.run import planned
    from headedit.bench.plots import methods as plots
    from headedit.io.strict import read_assignments

    config = CompareConfig.read(file, read_assignments(settings or []))
    folder = Path(config.output)
    if dry_run:
        cells = [[cell.name, str(cell.folder), "finished" if done else "new"] for cell, done in planned(config)]
        console.print(rich_table(f"headedit compare {file}", ["cell", "folder", "state"], cells, left=3))
        refuse(problems(config))
        print_next("compare", *_words(file, settings))
        return
    try:
        result = run(config, say=_say, on_cell=lambda found: _write(found, folder))
    except KeyboardInterrupt:
        done = sum(finished for _, finished in planned(config))
        raise KeyboardInterrupt(
            f"stopped; {done} cells are finished, and their table is in {folder}.\n"
            f"To continue: {shlex.join(['headedit', 'compare', *_words(file, settings)])}"
        ) from None
    files = write_bench(result, folder, _NAME, None)
    drawn = [line for line in result.summary if "score" in line]
    for name, draw in (("examples", plots.by_examples), ("parameters", plots.by_parameters)):
        if drawn:
            files.append(folder / f"{_NAME}-{name}.png")
            draw(drawn).savefig(files[-1], dpi=150)
    print_files(files)
    if len(config.seeds) < _SEEDS:
        more = json.dumps([*config.seeds, *(n for n in range(2 * _SEEDS) if n not in config.seeds)][:_SEEDS])
        given = [each for each in settings or [] if not each.startswith("seeds=")]
        remark = "more seeds, for narrower intervals; finished cells are kept"
        print_next("compare", *_words(file, [*given, f"seeds={more.replace(' ', '')}"]), remark=remark)
    else:
        say_next(f"read {folder / _NAME}.md, and train what it shows as best by headedit train --recipe")


def _words(file: Path, settings: list[str] | None) -> list[str]:
    """The words with which the command was called, after ``headedit compare``."""
    return [str(file), *(word for setting in settings or [] for word in ("--set", setting))]


def _write(result: "BenchResult", folder: Path) -> None:
    """Writes the tables so far."""
    write_json(folder / f"{_NAME}.json", result.to_dict())
    write_whole(folder / f"{_NAME}.md", result.markdown())


def _say(message: str) -> None:
    say_plain(message)
