"""The command ``headedit train``: a run from a file, from a name, or from options alone."""

import io
import os
from contextlib import redirect_stdout
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from headedit.cli.json_output import Json, put_json, takes_json
from headedit.cli.next_step import eval_command, print_command
from headedit.cli.run_options import BaseModel, Resume, RunDtype, RunSeed, run_fields
from headedit.cli.shared import (
    Device,
    Fields,
    Limit,
    Skip,
    SpecFile,
    console,
    named,
    print_files,
    print_rows,
    say_plain,
)
from headedit.cli.stopping import stopped_message

if TYPE_CHECKING:
    from headedit.data import Data
    from headedit.edits import HeadEdits
    from headedit.runs.run import Run
    from headedit.training.config import RunConfig

_SHOWN = 5

NOTHING_LEARNT = 3
"""Exit code of a run after which the unedited model is the better one."""


@takes_json
def train(
    config: Annotated[
        str | None,
        typer.Argument(metavar="CONFIG", help="YAML file of a run, or a name from `headedit config list`."),
    ] = None,
    model: BaseModel = None,
    data: Annotated[
        str | None,
        typer.Option(
            "--data", "-d", help="Training records: a JSON, JSON lines, CSV or Parquet file, or the id of a dataset."
        ),
    ] = None,
    output: Annotated[
        str | None, typer.Option("--output", "-o", help="Folder for the edits and the record of the run.")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="A field of the config, such as training.learning_rate=1e-3, or of the recipe, such as budget=0.05; "
            "may be repeated.",
        ),
    ] = None,
    resume: Resume = False,
    overwrite: Annotated[
        bool,
        typer.Option("--overwrite", help="Remove the run in the output folder first: all that headedit wrote there."),
    ] = False,
    valid: Annotated[
        str | None, typer.Option("--valid", help="Validation records, in any form that --data takes.")
    ] = None,
    valid_share: Annotated[
        float | None,
        typer.Option(
            "--valid-share",
            min=0.0,
            max=0.9,
            help="Share of --data to hold out if there is no --valid.  [default: 0.2; localise holds out its own]",
        ),
    ] = None,
    recipe: Annotated[str | None, typer.Option("--recipe", help="Recipe to train with.  [default: localise]")] = None,
    shape: Annotated[
        list[str] | None, typer.Option("--edit", help="A field of EditConfig, such as gates=shared; may be repeated.")
    ] = None,
    seeds: Annotated[
        int | None,
        typer.Option("--seeds", min=1, help="Number of seeds to train with, to see which heads they agree on."),
    ] = None,
    controls: Annotated[
        bool,
        typer.Option("--controls", help="Also train random heads and all heads without gates, and try random vectors."),
    ] = False,
    bootstrap: Annotated[
        int | None,
        typer.Option(
            "--bootstrap",
            min=0,
            help="Number of halves of the examples that rank all heads, to say how sure each is; 20 is a good number.",
        ),
    ] = None,
    layers: Annotated[
        str | None, typer.Option("--layers", help="Layers to edit, such as 8:24.  [default: all]")
    ] = None,
    spec: SpecFile = None,
    max_length: Annotated[
        int | None, typer.Option("--max-length", min=2, help="Drop examples of more tokens than this.")
    ] = None,
    limit: Limit = None,
    seed: RunSeed = None,
    dtype: RunDtype = None,
    device: Device = None,
    no_memory_check: Annotated[
        bool, typer.Option("--no-memory-check", help="Start a run that seems to need more memory than is free.")
    ] = False,
    no_wandb: Annotated[
        bool, typer.Option("--no-wandb", help="Do not log to Weights & Biases, whatever the config says.")
    ] = False,
    skip_broken: Skip = False,
    fields: Fields = None,
    as_json: Json = False,
) -> None:
    """Train edits for a model, by a config file or by options; options win over the file.

    Example: `headedit train --model ./my-model --data train.jsonl --output out --set epochs=10`

    Example: `headedit train run.yaml --set training.learning_rate=1e-3 --resume`
    """
    from headedit.io.strict import read_assignments
    from headedit.training.config import read_run
    from headedit.training.config.trackers import without_wandb
    from headedit.training.train import train as train_run

    own = {
        "data.valid": valid,
        "data.fields": named(fields, "--fields"),
        "data.max_length": max_length,
        "data.skip_malformed": skip_broken or None,
        "recipe.name": recipe,
        "edits.layers": layers,
        "spec": None if spec is None else str(spec),
        "seeds": seeds,
        "controls": controls or None,
        "bootstrap": bootstrap,
    }
    given = run_fields(
        "train",
        config,
        model=model,
        data=data,
        output=output,
        limit=limit,
        seed=seed,
        dtype=dtype,
        device=device,
        others=own,
    )
    if valid is None and valid_share is not None:
        given["data.valid"] = valid_share or None
    given |= {f"edits.{key}": value for key, value in read_assignments(shape or []).items()}
    given |= read_assignments(settings or [])
    if config is None:
        given = _held_out(given)
    run = read_run(config, given)
    if no_wandb:
        run = replace(run, logging=without_wandb(run.logging))
    if int(os.environ.get("RANK", "0")) != 0:
        console.quiet = True  # of several processes only the first one prints
    try:
        trained = train_run(
            run,
            resume=resume,
            overwrite=overwrite,
            memory_check=not no_memory_check,
            ready=partial(print_start, run),
        )
    except KeyboardInterrupt as stop:
        raise KeyboardInterrupt(stopped_message(Path(run.output or ""), str(stop))) from None
    worse = trained.worse_than_base
    if worse is not None:
        console.print(f"[bold red]nothing learnt:[/] {escape(worse)}")
    print_rows(f"headedit train ({run.recipe_name})", rows_of(trained))
    print_files([trained.output_dir])
    result = {"output": str(trained.output_dir), "learnt": worse is None, **trained.record}
    put_json({**result, "next": eval_command(run)[0] if worse is None else None})
    if worse is not None:
        raise typer.Exit(NOTHING_LEARNT)
    print_next(run)


def print_start(run: "RunConfig", edits: "HeadEdits", data: "Data") -> None:
    """Prints how the data was read, how many parameters will be trained, and in how many steps."""
    from headedit.training.recipes import make_recipe
    from headedit.training.recipes.effort import planned_text

    print_data(edits, data)
    stages = make_recipe(run.recipe_name, run.recipe_fields).plan(len(data.train), validated=data.valid is not None)
    if stages:
        console.print(f"{run.recipe_name}: {planned_text(stages)}")


def print_data(edits: "HeadEdits", data: "Data") -> None:
    """Prints how the data was read, and how many parameters will be trained."""
    reports = [data.report[split] for split in ("train", "valid", "test") if split in data.report]
    for message in dict.fromkeys(message for report in reports for message in report["malformed_first"][:_SHOWN]):
        console.print(f"[yellow]left out:[/] {escape(message)}")
    for sources, count in dict.fromkeys((", ".join(r["sources"]), r["malformed"]) for r in reports if r["malformed"]):
        console.print(f"{count} broken records of {escape(sources)} are left out.")
    print_rows("data", data.rows())
    if not console.quiet:
        with redirect_stdout(io.StringIO()) as printed:
            edits.print_trainable_parameters()
        say_plain(printed.getvalue().rstrip("\n"))


def print_next(run: "RunConfig") -> None:
    """Prints the command that evaluates the edits of a finished run."""
    command, held_out = eval_command(run)
    print_command(command, remark="" if held_out else "these examples were trained on; better give others")


def rows_of(run: "Run") -> list[tuple[str, str]]:
    """The run's summary, with the loss on its test set if it had one."""
    rows, record = run.rows(), run.record
    if "test_loss" in record:
        rows.append(
            (
                "test loss",
                f"{record['test_loss']:.4f} nats per token, the base's {record['test_loss_base']:.4f}, "
                f"on {record['test_examples']} examples",
            )
        )
    return rows


def _held_out(given: dict[str, Any]) -> dict[str, Any]:
    """Adds a validation set of a fifth of the examples, unless one is given or the recipe holds out its own."""
    from headedit.training.recipes import DEFAULT, RECIPES

    if "data.valid" in given:
        return given
    recipe = RECIPES.get(given.get("recipe.name", DEFAULT))
    compared = given.get("seeds", 1) != 1 or given.get("controls", False)
    holds_out = recipe is not None and recipe.holds_out and not compared
    return given if holds_out else {**given, "data.valid": 0.2}
