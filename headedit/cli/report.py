"""The command ``headedit report``: a run as one HTML file, with evidence if its model and data are available."""

import dataclasses
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer
from rich.markup import escape

from headedit.cli.next_step import say_next
from headedit.cli.shared import Device, Dtype, DtypeOption, Seed, Skip, console, print_files, write_whole
from headedit.errors import HeadEditError

if TYPE_CHECKING:
    import pandas  # type: ignore[import-untyped,unused-ignore]
    from torch import nn

    from headedit.interpret.report import Table
    from headedit.interpret.report.folder import RunFolder
    from headedit.training.config import RunConfig


def report(
    run: Annotated[Path, typer.Argument(help="Folder of a run.")],
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="Folder or hub id of the base model.  [default: the run's]")
    ] = None,
    data: Annotated[
        str | None, typer.Option("--data", "-d", help="Examples to measure the heads on.  [default: those of run.yaml]")
    ] = None,
    tokenizer: Annotated[
        str | None, typer.Option("--tokenizer", help="Folder or hub id of a tokenizer.  [default: the model's]")
    ] = None,
    evidence: Annotated[
        bool | None,
        typer.Option(
            "--evidence/--no-evidence",
            help="Measure each head: effect on the loss, tokens, probe.  [default: if there is --data or a run.yaml]",
        ),
    ] = None,
    evaluations: Annotated[
        list[Path] | None, typer.Option("--eval", help="Report of `headedit eval` to include; may be repeated.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="HTML file to write.  [default: report.html in RUN]")
    ] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="Measure on at most this many examples.")] = 64,
    probes: Annotated[bool, typer.Option("--probes/--no-probes", help="Train a probe on every head.")] = True,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Examples per batch.")] = 16,
    seed: Seed = 0,
    dtype: DtypeOption = Dtype.auto,
    device: Device = None,
    spec: Annotated[Path | None, typer.Option("--spec", help="Spec file for an architecture without one.")] = None,
    skip_broken: Skip = False,
) -> None:
    """Write a run's settings, results, pictures and heads to one HTML file, which needs no network.

    Example: `headedit report out --data test.jsonl`
    """
    from headedit.interpret.report import report as page
    from headedit.interpret.report.folder import RunFolder
    from headedit.runs.files import REPORT_FILE, RUN_YAML

    given = any(value is not None for value in (model, data, tokenizer))
    if given and evidence is False:
        raise HeadEditError("--model, --data and --tokenizer are only for the evidence, which --no-evidence turns off.")
    folder = RunFolder.read(run)
    tables = [_evaluation(path) for path in evaluations or []]
    frame = None
    if given or evidence or (evidence is None and folder.config is not None):
        options = {"probe": probes, "batch_size": batch_size, "seed": seed}
        try:
            loaded = _prepare(folder, model, data, tokenizer, dtype, device, spec, skip_broken)
            frame = _measure(run, loaded, limit, options)
        except HeadEditError as error:
            raise HeadEditError(f"{error}\nUse --no-evidence for a report without effects and tokens.") from None
    elif evidence is None:
        console.print(f"There is no {RUN_YAML} in the run, so effects and tokens are left out; --data FILE adds them.")
    file = run / REPORT_FILE if output is None else output
    chosen: dict[str, Any] = {
        "--model": model,
        "--data": data,
        "--tokenizer": tokenizer,
        "--eval": evaluations,
        "--spec": spec,
        **({} if frame is None else {"--limit": limit, "--batch-size": batch_size, "--seed": seed}),
        **({} if dtype is Dtype.auto else {"--dtype": dtype.value}),
        "--device": device,
    }
    flags = [
        *(["--no-evidence"] if evidence is False else []),
        *(["--no-probes"] if frame is not None and not probes else []),
        *(["--skip-broken"] if skip_broken else []),
    ]
    write_whole(file, page(run, evidence=frame, tables=tables, command=_command(run, chosen, flags)))
    print_files([file])
    say_next(f"open {file} in a browser")


def _command(run: Path, options: dict[str, Any], flags: Sequence[str]) -> str:
    """The command that makes the page again, with files and folders named without those that they are in."""
    words = ["headedit", "report", run.resolve().name]
    for name, value in options.items():
        for one in value if isinstance(value, list) else [value]:
            if one is not None:
                is_path = isinstance(one, Path) or (isinstance(one, str) and Path(one).exists())
                words += [name, Path(one).resolve().name if is_path else str(one)]
    return shlex.join([*words, *flags])


_SHOWN = 5
"""Messages about malformed records that are printed."""


class _Loaded(NamedTuple):
    """What evidence is measured with: the base model, its tokenizer, the examples and the spec file, if given."""

    model: "nn.Module"
    tokenizer: Any
    examples: Sequence[Any]
    spec: str | Path | None


def _prepare(
    folder: "RunFolder",
    model: str | None,
    data: str | None,
    tokenizer: str | None,
    dtype: Dtype,
    device: str | None,
    spec: Path | None,
    skip_broken: bool,
) -> _Loaded:
    """Loads model, tokenizer and examples: those of the options, otherwise those of the run."""
    from headedit.hf.loading import load_tokenizer
    from headedit.training.config import ModelConfig, read_run

    config = None if folder.config is None else read_run(folder.path)
    if data is None and config is None:
        raise HeadEditError(f"{folder.path}: does not say which data to measure on; give --data FILE.")
    if model is not None or config is None:
        chosen = ModelConfig(name=model or folder.base_model)
    else:
        chosen = config.model
    if dtype is not Dtype.auto:
        chosen = dataclasses.replace(chosen, dtype=dtype.value)
    if device is not None:
        chosen = dataclasses.replace(chosen, device=device, device_map=None)
    try:
        read = chosen.load_tokenizer() if tokenizer is None else load_tokenizer(tokenizer)
        base = chosen.load()
    except HeadEditError as error:
        if model is not None or config is not None:
            raise
        raise HeadEditError(
            f"{error} The run records the name of its base model, '{chosen.name}', without the folder that it was "
            "loaded from: give the model with --model."
        ) from None
    examples = _examples(config, data, read, base, skip_broken)
    return _Loaded(base, read, examples, (None if config is None else config.spec) if spec is None else spec)


def _examples(
    config: "RunConfig | None", data: str | None, tokenizer: Any, model: "nn.Module", skip_broken: bool
) -> Sequence[Any]:
    """Encoded as for training: examples of a file, or the run's own test, validation or training examples."""
    from headedit.data import DataConfig, load_data
    from headedit.hf.config import context_length

    if data is None:
        assert config is not None
        choices = config.data
    elif config is None:
        choices = DataConfig(train=data)
    else:
        nothing: dict[str, Any] = dict.fromkeys(("valid", "test", "examples", "valid_examples", "test_examples"))
        choices = dataclasses.replace(config.data, **{**nothing, "train": data})
    if skip_broken:
        choices = dataclasses.replace(choices, skip_malformed=True)
    found = load_data(choices, tokenizer, context=context_length(model))
    for message in found.report["train"]["malformed_first"][:_SHOWN]:
        console.print(f"[yellow]left out:[/] {escape(message)}")
    return found.test or found.valid or found.train


def _measure(run: Path, loaded: _Loaded, limit: int, options: dict[str, Any]) -> "pandas.DataFrame":
    """The table of evidence for the run's edits, measured on the first ``limit`` examples."""
    from headedit.edits import load
    from headedit.interpret.evidence.table import evidence

    edits = load(loaded.model, run, spec=loaded.spec)
    return evidence(edits, loaded.examples[:limit], tokenizer=loaded.tokenizer, **options)


def _evaluation(path: Path) -> "Table":
    """A report of ``headedit eval``, one row per task: scores with and without edits, and of the constant answer."""
    from headedit.evaluation.reports.report import shown
    from headedit.evaluation.reports.saved_runs import read_run
    from headedit.interpret.report import Table

    def figure(metric: str, score: dict[str, Any] | None) -> str:
        if score is None:
            return "–"
        low, high = (shown(metric, end) for end in score["interval"])
        return f"{shown(metric, next(iter(score['metrics'].values())))} [{low}, {high}]"

    cells = []
    for task, found in read_run(path).reports.items():
        metric, constant = found["metric"], found["constant"]["value"]
        scores = (figure(metric, found["score"]), figure(metric, found.get("base")), shown(metric, constant))
        cells.append([task, metric, f"{found['n']:,}", *scores])
    return Table(
        title=f"Evaluation: {path.name}",
        header=["task", "metric", "examples", "model", "edits off", "constant answer"],
        cells=cells,
        left=2,
        notes=["In brackets the 95 % interval. Accuracy in percent."],
    )
