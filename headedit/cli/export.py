"""The command ``headedit export``: a task's records, written to a file to train on."""

import json
from pathlib import Path
from typing import Annotated

import typer

from headedit.cli.shared import Limit, Seed, Skip, console, print_files, write_whole


def export(
    task: Annotated[str, typer.Argument(help="Name of a task, such as mmlu_pro:law, or its YAML file.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="File to write: JSON, or JSON lines if it ends in .jsonl.")
    ],
    data: Annotated[
        str | None, typer.Option("--data", "-d", help="The records: file, folder or hub id.  [default: the task's]")
    ] = None,
    split: Annotated[str, typer.Option("--split", help="Split to export.")] = "train",
    limit: Limit = None,
    seed: Seed = 0,
    skip_broken: Skip = False,
) -> None:
    """Write a task's prompts and responses to a file that `headedit train` can read.

    Example: `headedit export mmlu_pro:law --split validation --output law.json`
    """
    from headedit.evaluation.tasks.export import training_records

    records, broken = training_records(task, data=data, split=split, limit=limit, seed=seed, skip_broken=skip_broken)
    for message in broken:
        console.print(f"left out: {message}", markup=False)
    if output.suffix == ".jsonl":
        text = "\n".join(json.dumps(record, ensure_ascii=False) for record in records)
    else:
        text = json.dumps(records, indent=1, ensure_ascii=False)
    write_whole(output, text + "\n")
    console.print(f"{len(records)} records of {task}", markup=False)
    print_files([output])
