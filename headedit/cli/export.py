"""The command ``headedit export``: a task's records, written to a file to train on."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from headedit.cli.next_step import print_next
from headedit.cli.shared import Limit, Seed, Skip, console, print_files, write_whole
from headedit.errors import HeadEditError


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
    preferences: Annotated[
        bool, typer.Option("--preferences", help="Write pairs of a right and a wrong option, for `headedit dpo`.")
    ] = False,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="With --preferences: a field of the task, such as its prompt.")
    ] = None,
) -> None:
    """Write a task's prompts and responses to a file that `headedit train` can read.

    Example: `headedit export mmlu_pro:law --split validation --output law.json`
    """
    from headedit.evaluation.tasks.export import preference_records, training_records
    from headedit.io.strict import read_assignments

    if settings and not preferences:
        raise HeadEditError("--set: changes the task of --preferences; give both, or copy the task's YAML file.")
    options: dict[str, Any] = {"data": data, "split": split, "limit": limit, "seed": seed, "skip_broken": skip_broken}
    if preferences:
        records, broken = preference_records(task, **options, **read_assignments(settings or []))
    else:
        records, broken = training_records(task, **options)
    for message in broken:
        console.print(f"left out: {message}", markup=False)
    if output.suffix == ".jsonl":
        text = "\n".join(json.dumps(record, ensure_ascii=False) for record in records)
    else:
        text = json.dumps(records, indent=1, ensure_ascii=False)
    write_whole(output, text + "\n")
    console.print(f"{len(records)} records of {task}", markup=False)
    print_files([output])
    if preferences:
        print_next("dpo", "lofit-truthfulqa", "--set", f"train={output}", "--output", "FOLDER")
    else:
        print_next("train", "--model", "MODEL", "--data", output, "--output", "FOLDER")
