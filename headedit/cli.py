"""The command line: parses, calls, prints. ``headedit COMMAND --help`` has an example for each command."""

import logging
import os
import sys
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from headedit import cli_bench, cli_demo, cli_import, cli_merge, cli_spec
from headedit.cli_files import Seed, console, print_files, print_rows, read_pairs, write_json
from headedit.errors import HeadEditError
from headedit.version import __version__

app = typer.Typer(
    name="headedit",
    help="Learned, gated edits to the attention heads of any Hugging Face causal LM.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
app.add_typer(cli_spec.app)
app.add_typer(cli_bench.app)
app.add_typer(cli_import.app)
app.command()(cli_demo.demo)
app.command()(cli_merge.merge)


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


def _version(wanted: bool) -> None:
    if wanted:
        console.print(f"headedit {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Show it.")] = False,
) -> None:
    from transformers.utils import logging as transformers_logging

    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()


@app.command()
def train(
    model: Model,
    data: Data,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the edits and the run's history.")],
    valid: Annotated[Path | None, typer.Option("--valid", help="Validation records, in the same form.")] = None,
    valid_share: Annotated[
        float | None,
        typer.Option(
            "--valid-share",
            min=0.0,
            max=0.9,
            help="Share of --data held out without --valid.  [default: 0.2, but localise holds out for itself]",
        ),
    ] = None,
    recipe: Annotated[str, typer.Option("--recipe", help="Name of the recipe.")] = "localise",
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="A field of the recipe, such as budget=0.05; may be repeated.")
    ] = None,
    shape: Annotated[
        list[str] | None, typer.Option("--edit", help="A field of the edits, such as gates=shared; may be repeated.")
    ] = None,
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="Runs with other seeds, to see what they agree on.")] = 1,
    controls: Annotated[
        bool, typer.Option("--controls", help="Also fit random heads and no gates, and try random vectors.")
    ] = False,
    layers: Annotated[
        str | None, typer.Option("--layers", help="Layers to edit, such as 8:24.  [default: all]")
    ] = None,
    spec: Annotated[Path | None, typer.Option("--spec", help="Spec file for an architecture without one.")] = None,
    max_length: Annotated[int | None, typer.Option("--max-length", min=2, help="Leave out longer examples.")] = None,
    limit: Limit = None,
    seed: Seed = 0,
    dtype: DtypeOption = Dtype.auto,
    device: Device = None,
    skip_broken: Skip = False,
) -> None:
    """Learn edits for a model from a file of examples.

    Example: `headedit train --model ./my-model --data train.jsonl --output out --set epochs=10`
    """
    from headedit.edits import EditConfig, attach
    from headedit.edits.files import check_writable
    from headedit.loading import load_model, load_tokenizer
    from headedit.specs.strict import read_assignments
    from headedit.training.fit import fit
    from headedit.training.recipes import make_recipe
    from headedit.training.records import split

    overrides = read_assignments(settings or [])
    named = make_recipe(recipe, overrides)
    config = EditConfig.from_dict({"layers": layers, **read_assignments(shape or [])}, "--edit")
    pairs = read_pairs(data, limit, seed, skip_broken)
    held_out = read_pairs(valid, None, seed, skip_broken) if valid else None
    if held_out is None:
        if valid_share is None:
            valid_share = 0.0 if named.holds_out and seeds == 1 and not controls else 0.2
        pairs, held_out = split(pairs, valid_share, seed)
    check_writable(output)
    loaded, tokenizer = load_model(model, dtype=dtype.value, device=device), load_tokenizer(model)
    edits = attach(loaded, spec=spec, config=config)
    edits.print_trainable_parameters()
    run = fit(
        edits,
        pairs,
        held_out,
        output_dir=output,
        recipe=recipe,
        seed=seed,
        tokenizer=tokenizer,
        max_length=max_length,
        seeds=seeds,
        controls=controls,
        **overrides,
    )
    print_rows(f"headedit train ({recipe})", run.rows())
    print_files([output])


@app.command("eval")
def evaluate(
    model: Model,
    data: Data,
    edits: Annotated[Path | None, typer.Option("--edits", "-e", help="Folder or hub id of saved edits.")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="JSON file for the report.")] = None,
    limit: Limit = None,
    seed: Seed = 0,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Prompts a batch.")] = 32,
    max_new_tokens: Annotated[
        int | None, typer.Option("--max-new-tokens", min=1, help="[default: the longest expected response]")
    ] = None,
    dtype: DtypeOption = Dtype.auto,
    device: Device = None,
    spec: Annotated[Path | None, typer.Option("--spec", help="Spec file for an architecture without one.")] = None,
    skip_broken: Skip = False,
) -> None:
    """Measure exact match of greedy responses, with edits, without, and of a constant answer.

    Example: `headedit eval --model ./my-model --edits out --data test.jsonl --limit 500`
    """
    from headedit.edits import load
    from headedit.evaluation import exact_match
    from headedit.loading import load_model, load_tokenizer

    pairs = read_pairs(data, limit, seed, skip_broken)
    loaded, tokenizer = load_model(model, dtype=dtype.value, device=device), load_tokenizer(model)
    handle = load(loaded, edits, spec=spec) if edits else None
    report = exact_match(loaded, tokenizer, pairs, edits=handle, batch_size=batch_size, max_new_tokens=max_new_tokens)
    base = report.accuracy if report.base_accuracy is None else report.base_accuracy
    rows = [
        ("examples", str(report.n)),
        ("base model", f"{base:.1%} exact match"),
        ("constant answer", f"{report.constant_accuracy:.1%} ('{report.constant_answer}')"),
    ]
    if handle is not None:
        rows.append(("edited model", f"{report.accuracy:.1%} exact match"))
    print_rows("headedit eval", [*rows, ("time", f"{report.seconds:.1f} s")])
    if output is not None:
        write_json(output, report.to_dict())
        print_files([output])


@app.command("plot")
def draw(
    run: Annotated[Path, typer.Argument(help="Folder of a run, or of saved edits.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder for the pictures.  [default: RUN]")
    ] = None,
    kind: Annotated[str | None, typer.Option("--kind", help="Kind of site to draw.")] = None,
) -> None:
    """Draw the gates of saved edits, and the run's history and pruning path if there are; needs no model.

    Example: `headedit plot out`
    """
    from headedit.edits.files import check_writable
    from headedit.history import HISTORY_FILE
    from headedit.interpret import plot
    from headedit.pruning_path import PATH_FILE

    figures = {"gates.png": plot.gates(run, kind=kind)}
    if (run / HISTORY_FILE).is_file():
        figures["history.png"] = plot.history(run)
    if (run / PATH_FILE).is_file():
        figures["path.png"] = plot.path(run)
    folder = check_writable(run if output is None else output)
    folder.mkdir(parents=True, exist_ok=True)
    for name, figure in figures.items():
        figure.savefig(folder / name, dpi=150)
    print_files([folder / name for name in figures])


@app.command()
def doctor(
    model: Annotated[str, typer.Argument(help="Folder or hub id of a causal LM.")],
    spec: Annotated[Path | None, typer.Option("--spec", help="Spec file instead of the one known.")] = None,
    dtype: DtypeOption = Dtype.auto,
    device: Device = None,
) -> None:
    """Say what attaching would do to a model, what will not work on it, and why.

    Example: `headedit doctor ./my-model`
    """
    from headedit.evaluation.doctor import examine
    from headedit.loading import load_model

    findings = examine(load_model(model, dtype=dtype.value, device=device), spec)
    print_rows(f"headedit doctor {model}", findings)


def main(arguments: list[str] | None = None) -> None:
    """The command ``headedit``: exit 2 and one message for a user's mistake, a traceback with --debug."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given
    given = [*(["--debug"] if debug else []), *(a for a in given if a != "--debug")]
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        app(given, prog_name="headedit")
    except HeadEditError as error:
        if debug:
            raise
        print(f"headedit: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("headedit: stopped.", file=sys.stderr)
        raise SystemExit(130) from None
    except Exception as error:
        if debug:
            raise
        print(
            f"headedit: a fault of headedit itself, not of yours: {type(error).__name__}: {error}\n"
            "Run the command again with --debug to see where, and please report it.",
            file=sys.stderr,
        )
        raise SystemExit(1) from None
