"""The command ``headedit eval``: tasks, or your own examples, with edits and without, next to the baselines."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from headedit.cli.json_output import Json, put_json, takes_json
from headedit.cli.next_step import print_next, say_next
from headedit.cli.processes import in_all_processes
from headedit.cli.shared import (
    Device,
    Dtype,
    DtypeOption,
    Edits,
    Fields,
    Limit,
    Model,
    Seed,
    Skip,
    SpecFile,
    console,
    listed,
    named,
    print_files,
    say_plain,
    write_whole,
)
from headedit.errors import HeadEditError

if TYPE_CHECKING:
    from headedit.evaluation.tasks.task import Task


@takes_json
def evaluate(
    model: Model,
    edits: Edits = None,
    tasks: Annotated[
        str | None,
        typer.Option("--tasks", "-t", help="Tasks, suites such as commonsense, or YAML files, separated by commas."),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            "--data", "-d", help="File, folder or hub id of the tasks' records; without --tasks, examples as for train."
        ),
    ] = None,
    train: Annotated[
        str | None, typer.Option("--train", help="Records from which the majority answer is taken.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="Folder for reports and predictions, or a .json file if there is one task."
        ),
    ] = None,
    scoring: Annotated[
        str | None, typer.Option("--scoring", help="Score by generation or loglikelihood.  [default: the task's]")
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="A field of the tasks, such as num_beams=1; may be repeated.")
    ] = None,
    limit: Limit = None,
    seed: Seed = 0,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Examples per batch.")] = 32,
    max_new_tokens: Annotated[
        int | None,
        typer.Option(
            "--max-new-tokens", min=1, help="Longest answer, in tokens.  [default: the task's, or the longest response]"
        ),
    ] = None,
    dtype: DtypeOption = Dtype.auto,
    device: Device = None,
    spec: SpecFile = None,
    skip_broken: Skip = False,
    fields: Fields = None,
    as_json: Json = False,
) -> None:
    """Evaluate a model on tasks, with its edits and with them switched off; or exact match on your own examples.

    A stopped evaluation is resumed when it is called again with the same output. Started by torchrun or accelerate, all
    processes share the examples out.

    Example: `headedit eval --model ./my-model --edits out --tasks arc_c,boolq --limit 500 --output reports`

    Example: `torchrun --nproc-per-node 8 -m headedit eval --model ./my-model --tasks boolq --output reports`
    """
    from headedit import evaluation
    from headedit.edits import load
    from headedit.evaluation.exact_match import EXACT_MATCH
    from headedit.evaluation.reports.report_tables import markdown, rich_tables
    from headedit.evaluation.tasks.task_files import find_tasks, packaged_tasks
    from headedit.hf.loading import load_model, load_tokenizer
    from headedit.io.strict import read_assignments

    with in_all_processes() as processes:
        changes = read_assignments(settings or [])
        changes |= {k: v for k, v in (("scoring", scoring), ("max_new_tokens", max_new_tokens)) if v is not None}
        if tasks is not None:
            chosen = find_tasks(listed(tasks), **changes)
        elif data is not None:
            chosen = find_tasks([EXACT_MATCH], **changes)
        else:
            raise HeadEditError(f"Give --tasks, --data, or both. Tasks: {', '.join(packaged_tasks())}.")
        if not chosen:
            raise HeadEditError("--tasks: names no task.")
        files = _files(output, chosen)
        loaded, tokenizer = load_model(model, dtype=dtype.value, device=device), load_tokenizer(model)
        handle = load(loaded, edits, spec=spec) if edits else None
        reports = [
            evaluation.evaluate(
                loaded,
                task,
                edits=handle,
                tokenizer=tokenizer,
                data=data,
                train=train,
                limit=limit,
                seed=seed,
                batch_size=batch_size,
                output=file,
                skip_broken=skip_broken,
                fields=named(fields, "--fields"),
            )
            for task, file in zip(chosen, files, strict=True)
        ]
        console.print(rich_tables(reports))
        if handle is not None:
            say_plain("model: with its edits; base: without them; p: of a paired test of the two; a / b: model / base.")
        written = [file for file in files if file is not None]
        if output is not None:
            if len(reports) > 1:
                written.append(output / "summary.md")
                if processes.first:
                    write_whole(written[-1], markdown(reports))
            print_files(written)
            print_next("table", output)
        else:
            say_next("the same command with --output FOLDER, which keeps the figures and every answer")
        put_json(
            {
                "model": model,
                "edits": edits,
                "files": [str(file) for file in written],
                "reports": [report.to_dict() for report in reports],
            }
        )


def _files(output: Path | None, tasks: "list[Task]") -> list[Path | None]:
    """The file for each task's report: ``output`` itself if it is a .json file, otherwise one in that folder."""
    if output is None:
        return [None] * len(tasks)
    if output.suffix != ".json":
        return [output / f"{task.name.replace(':', '-').replace(' ', '_')}.json" for task in tasks]
    if len(tasks) > 1:
        raise HeadEditError(f"--output {output}: {len(tasks)} tasks need a folder, not one file.")
    return [output]
