"""The command ``headedit train``: a run from a file, from a name, or from options alone."""

import os
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from headedit.cli.shared import Dtype, console, print_files, print_rows
from headedit.errors import HeadEditError

if TYPE_CHECKING:
    from headedit.data import Data
    from headedit.edits import HeadEdits
    from headedit.runs.run import Run

_SHOWN = 5


def train(
    config: Annotated[
        str | None,
        typer.Argument(metavar="[CONFIG]", help="YAML file of a run, or a name that `headedit config list` shows."),
    ] = None,
    model: Annotated[str | None, typer.Option("--model", "-m", help="Folder or hub id of a causal LM.")] = None,
    data: Annotated[
        str | None,
        typer.Option("--data", "-d", help="JSON, JSON lines, CSV or Parquet file, or a dataset's id: instructions, …"),
    ] = None,
    output: Annotated[
        str | None, typer.Option("--output", "-o", help="Folder for the edits and the run's history.")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="Over the config: section.key=value, such as training.learning_rate=1e-3, or a field of the recipe, "
            "such as budget=0.05; may be repeated.",
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run that was stopped in the folder.")
    ] = False,
    valid: Annotated[str | None, typer.Option("--valid", help="Validation records, in any of these forms.")] = None,
    valid_share: Annotated[
        float | None,
        typer.Option(
            "--valid-share",
            min=0.0,
            max=0.9,
            help="Share of --data held out without --valid.  [default: 0.2, but localise holds out for itself]",
        ),
    ] = None,
    recipe: Annotated[str | None, typer.Option("--recipe", help="Name of the recipe.  [default: localise]")] = None,
    shape: Annotated[
        list[str] | None, typer.Option("--edit", help="A field of the edits, such as gates=shared; may be repeated.")
    ] = None,
    seeds: Annotated[
        int | None, typer.Option("--seeds", min=1, help="Runs with other seeds, to see what they agree on.")
    ] = None,
    controls: Annotated[
        bool, typer.Option("--controls", help="Also fit random heads and no gates, and try random vectors.")
    ] = False,
    layers: Annotated[
        str | None, typer.Option("--layers", help="Layers to edit, such as 8:24.  [default: all]")
    ] = None,
    spec: Annotated[str | None, typer.Option("--spec", help="Spec file for an architecture without one.")] = None,
    max_length: Annotated[int | None, typer.Option("--max-length", min=2, help="Leave out longer examples.")] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, help="Use this many records, drawn by the seed.")
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Seed of everything random.  [default: 0]")] = None,
    dtype: Annotated[Dtype | None, typer.Option("--dtype", help="Dtype to load the model in.")] = None,
    device: Annotated[
        str | None, typer.Option("--device", help="cpu, cuda:0, …  [default: a GPU if there is one]")
    ] = None,
    skip_broken: Annotated[
        bool, typer.Option("--skip-broken", help="Leave broken records out and report them.")
    ] = False,
) -> None:
    """Learn edits for a model, as a file says, or the options; these win over the file.

    Example: `headedit train --model ./my-model --data train.jsonl --output out --set epochs=10`

    Example: `headedit train run.yaml --set training.learning_rate=1e-3 --resume`
    """
    from headedit.io.strict import read_assignments
    from headedit.training.config import read_run
    from headedit.training.train import train as train_run

    if config is None and None in (model, data, output):
        raise HeadEditError(
            "Give a run's file or name (headedit config list), or all of --model, --data and --output. "
            "'headedit train --help' has an example of each."
        )
    options: dict[str, Any] = {
        "model.name": model,
        "model.dtype": None if dtype is None else dtype.value,
        "model.device": device,
        "data.train": data,
        "data.valid": valid,
        "data.examples": limit,
        "data.max_length": max_length,
        "data.skip_malformed": skip_broken or None,
        "data.seed": seed,
        "recipe.name": recipe,
        "edits.layers": layers,
        "spec": spec,
        "seed": seed,
        "seeds": seeds,
        "controls": controls or None,
        "output": output,
    }
    given = {key: value for key, value in options.items() if value is not None}
    if valid is None and valid_share is not None:
        given["data.valid"] = valid_share or None
    given |= {f"edits.{key}": value for key, value in read_assignments(shape or []).items()}
    given |= read_assignments(settings or [])
    if config is None:
        given = _held_out(given)
    run = read_run(config, given)
    if int(os.environ.get("RANK", "0")) != 0:
        console.quiet = True  # of several processes the first one speaks
    trained = train_run(run, resume=resume, ready=tell)
    print_rows(f"headedit train ({run.recipe_name})", rows_of(trained))
    print_files([trained.output_dir])


def tell(edits: "HeadEdits", data: "Data") -> None:
    """Prints what is about to be trained, and what became of the data."""
    reports = [data.report[split] for split in ("train", "valid", "test") if split in data.report]
    for message in dict.fromkeys(message for report in reports for message in report["malformed_first"][:_SHOWN]):
        console.print(f"[yellow]left out:[/] {escape(message)}")
    for sources, count in dict.fromkeys((", ".join(r["sources"]), r["malformed"]) for r in reports if r["malformed"]):
        console.print(f"{count} broken records of {escape(sources)} are left out.")
    print_rows("data", data.rows())
    if not console.quiet:
        edits.print_trainable_parameters()


def rows_of(run: "Run") -> list[tuple[str, str]]:
    """A run in short, with its test set where it had one."""
    rows, record = run.rows(), run.record
    if "test_loss" in record:
        rows.append(
            (
                "test loss",
                f"{record['test_loss']:.4f} nats a token, the base's {record['test_loss_base']:.4f}, "
                f"on {record['test_examples']} examples",
            )
        )
    return rows


def _held_out(given: dict[str, Any]) -> dict[str, Any]:
    """A fifth of the examples for validation, unless the recipe holds out for itself or there is a set."""
    from headedit.training.recipes import DEFAULT, RECIPES

    if "data.valid" in given:
        return given
    recipe = RECIPES.get(given.get("recipe.name", DEFAULT))
    compared = given.get("seeds", 1) != 1 or given.get("controls", False)
    holds_out = recipe is not None and recipe.holds_out and not compared
    return given if holds_out else {**given, "data.valid": 0.2}
