"""The command ``headedit dpo``: LoFiT by DPO on preferences, from a file or by a name."""

import json
import math
from pathlib import Path
from typing import Annotated

import typer

from headedit.cli.next_step import print_next
from headedit.cli.shared import print_files, print_rows

_SHOWN = 8


def dpo(
    config: Annotated[
        str, typer.Argument(metavar="CONFIG", help="YAML file of a DPO run, or lofit-truthfulqa, which is shipped.")
    ],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Folder for the edits; new or empty.")] = None,
    model: Annotated[str | None, typer.Option("--model", "-m", help="Folder or hub id of the base model.")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="A field of the run, such as heads=48; may be repeated.")
    ] = None,
) -> None:
    """Choose heads and train offsets on pairs of a chosen and a rejected response, by DPO, as LoFiT does.

    Example: `headedit dpo lofit-truthfulqa --set train=pairs.jsonl --output out`
    """
    from headedit.io.strict import read_assignments
    from headedit.training.preferences import read_preferences, train_preferences

    given = read_assignments(settings or [])
    given |= {} if output is None else {"output": str(output)}
    given |= {} if model is None else {"model.name": model}
    run = read_preferences(config, given)
    edits = train_preferences(run)
    opened, total = edits.count_open()["any"]
    folder = Path(run.output or "")
    print_rows("headedit dpo", [*_rows(folder, run.train), ("edited heads", f"{opened} of {total}")])
    print_files([folder])
    print_next("eval", "--model", run.model.name, "--edits", run.output, "--tasks", "truthfulqa_mc1,truthfulqa_mc2")


def _rows(folder: Path, pairs: str | None) -> list[tuple[str, str]]:
    """What a finished run learned from, which heads it chose first, and how far it prefers what was chosen."""
    from headedit.interpret.labels import head_name

    if not all((folder / name).is_file() for name in ("dpo.json", "history.jsonl")):  # of another process
        return [("pairs", str(pairs))]
    record = json.loads((folder / "dpo.json").read_text(encoding="utf-8"))
    logged = [json.loads(line) for line in (folder / "history.jsonl").read_text(encoding="utf-8").splitlines()]
    losses = {key: [row[key] for row in logged if key in row] for key in ("eval_loss", "loss")}
    what, loss = next(((key, found[-1]) for key, found in losses.items() if found), ("loss", math.nan))
    names = ", ".join(head_name(layer, head) for layer, head, _ in record["heads"][:_SHOWN])
    more = len(record["heads"]) - _SHOWN
    return [
        ("pairs", f"{record['pairs']:,} of {pairs}"),
        ("validation loss" if what == "eval_loss" else "loss", f"{loss:.4f}; {math.log(2):.4f} is no preference"),
        ("heads, best first", f"{names} and {more} more" if more > 0 else names),
    ]
