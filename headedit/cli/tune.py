"""The command ``headedit tune``: an adapter of PEFT, with IST or RST, from a config or options, and its evaluation."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from headedit.cli.next_step import say_next
from headedit.cli.run_options import BaseModel, Resume, RunDtype, RunSeed, run_fields
from headedit.cli.shared import Device, Limit, console, listed, print_files, print_rows, say_plain, write_whole
from headedit.cli.train import NOTHING_LEARNT
from headedit.errors import HeadEditError

if TYPE_CHECKING:
    from headedit.data import Data
    from headedit.evaluation import Report
    from headedit.training.tuning.config import TuneConfig
    from headedit.training.tuning.run import Tuned


def tune(
    config: Annotated[
        str | None,
        typer.Argument(metavar="CONFIG", help="YAML file of a run, its folder, or a name from `headedit config list`."),
    ] = None,
    model: BaseModel = None,
    data: Annotated[
        str | None, typer.Option("--data", "-d", help="Training records, in any form that `headedit train` takes.")
    ] = None,
    output: Annotated[
        str | None, typer.Option("--output", "-o", help="Folder for the adapter and the record of the run.")
    ] = None,
    method: Annotated[
        str | None, typer.Option("--method", help="Adapter: lora, dora, ia3 or ln.  [default: lora]")
    ] = None,
    rank: Annotated[int | None, typer.Option("--rank", "-r", min=1, help="Rank of lora and dora.")] = None,
    alpha: Annotated[
        float | None, typer.Option("--alpha", help="The update of lora and dora is multiplied by alpha / rank.")
    ] = None,
    sparse: Annotated[
        str | None,
        typer.Option("--sparse", help="Layers of each step: ist, by importance; rst, at random; all.  [default: all]"),
    ] = None,
    tasks: Annotated[
        str | None,
        typer.Option("--tasks", "-t", help="Tasks or suites for the evaluation, separated by commas; none for none."),
    ] = None,
    task_data: Annotated[
        str | None, typer.Option("--task-data", help="Folder with a folder of records for each task.")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="A field of the config, such as training.learning_rate=1e-4; may be repeated."),
    ] = None,
    resume: Resume = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Remove the run in the output folder first, with its evaluation.")
    ] = False,
    limit: Limit = None,
    seed: RunSeed = None,
    dtype: RunDtype = None,
    device: Device = None,
) -> None:
    """Train LoRA, DoRA, IA3 or layer norms, all layers or those that IST or RST draws, and evaluate the result.

    Example: `headedit tune llama-lora-ist --rank 32 --alpha 64 --output finetuned_result/r32`

    Example: `headedit tune --model ./my-model --data train.jsonl --method dora --sparse ist --output out`
    """
    from headedit.io.strict import read_assignments
    from headedit.training.tuning.config import read_tune
    from headedit.training.tuning.run import tune as tune_run

    own = {
        "method.name": method,
        "method.rank": rank,
        "method.alpha": alpha,
        "sparse.name": None if sparse == "all" else sparse,
        "evaluate.data": task_data,
    }
    given = run_fields(
        "tune",
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
    if sparse == "all":
        given["sparse"] = None
    if tasks is not None:
        given["evaluate.tasks"] = listed(tasks)
    given |= read_assignments(settings or [])
    if tasks == "none":
        given = {key: value for key, value in given.items() if not key.startswith("evaluate.")} | {"evaluate": None}
    run = read_tune(config, given)
    check_tasks(run)
    try:
        tuned = tune_run(run, resume=resume, overwrite=overwrite, ready=print_start)
    except KeyboardInterrupt as stop:
        again = shlex.join(["headedit", "tune", str(run.output), "--resume"])
        raise KeyboardInterrupt(f"{str(stop) or 'stopped.'}\nTo continue: {again}") from None
    print_rows(f"headedit tune ({run.method.name})", rows_of(run, tuned))
    print_files([tuned.folder])
    worse = worse_than_base(tuned)
    if worse is not None:
        console.print(f"[bold red]nothing learnt:[/] {escape(worse)}")
    if run.evaluate is not None:
        print_evaluation(evaluated(run, tuned), tuned)
    if worse is not None:
        raise typer.Exit(NOTHING_LEARNT)
    say_next(f"in Python, peft.PeftModel.from_pretrained(model, {str(tuned.folder)!r}) puts the adapter on its model")


def worse_than_base(tuned: "Tuned") -> str | None:
    """Says that the tuned model is worse than the base on held-out examples, by more than 1 %; None if it is not."""
    from headedit.runs.record import MARGIN

    found = tuned.record["held_out"]
    if found is None or found["tuned"] <= (1 + MARGIN) * found["base"]:
        return None
    return (
        f"The tuned model is worse than the base on {found['examples']} held-out examples, {found['tuned']:.4f} "
        f"against {found['base']:.4f} nats per token. The adapter is saved all the same. Lower the learning rate, or "
        "give more examples."
    )


def print_start(model: Any, data: "Data") -> None:
    """Prints how the data was read, and how many parameters will be trained."""
    print_rows("data", data.rows())
    trained, whole = model.get_nb_trainable_parameters()
    say_plain(f"trainable params: {trained:,} || all params: {whole:,} || trainable%: {100 * trained / whole:.4f}")


def rows_of(run: "TuneConfig", tuned: "Tuned") -> list[tuple[str, str]]:
    """The summary of a run."""
    record = tuned.record
    rows = [("steps", f"{record['steps']:,}, the adapter is that of step {record['kept_step']:,}")]
    held_out = record["held_out"]
    if held_out is not None:
        rows.append(
            (
                "validation loss",
                f"{held_out['tuned']:.4f} nats per token, the base's {held_out['base']:.4f}, "
                f"on {held_out['examples']} examples",
            )
        )
    if record["layers"]:
        assert run.sparse is not None
        most = sorted(record["layers"], key=lambda layer: (-layer["times_trained"], layer["layer"]))[:5]
        named = ", ".join(f"{layer['layer']} ({layer['times_trained']} steps)" for layer in most)
        rows.append((f"{run.sparse.name}: layers trained most", named))
    return rows


def check_tasks(run: "TuneConfig") -> None:
    """Raises a HeadEditError for a task that does not exist, before anything is trained."""
    from headedit.evaluation.tasks.task_files import find_tasks

    if run.evaluate is not None and not find_tasks([*run.evaluate.tasks], **run.evaluate.changes):
        raise HeadEditError("evaluate: tasks: names no task; leave the section 'evaluate' out for no evaluation.")


def evaluated(run: "TuneConfig", tuned: "Tuned") -> "list[Report]":
    """The report of each task, which is also written into the run's folder; what is there already is not made again."""
    from headedit.evaluation import evaluate
    from headedit.evaluation.tasks.task_files import find_tasks
    from headedit.training.tuning.folder import EVALUATION

    chosen = run.evaluate
    assert chosen is not None
    return [
        evaluate(
            tuned.inner,
            task,
            tokenizer=tuned.tokenizer,
            data=chosen.data,
            limit=chosen.limit,
            batch_size=chosen.batch_size,
            output=tuned.folder / EVALUATION / f"{task.name.replace(':', '-').replace(' ', '_')}.json",
        )
        for task in find_tasks([*chosen.tasks], **chosen.changes)
    ]


def print_evaluation(reports: "list[Report]", tuned: "Tuned") -> None:
    """Prints the tables of an evaluation, with the mean over the tasks, and writes them as ``summary.md``."""
    from headedit.evaluation.reports.report_tables import markdown, rich_tables
    from headedit.training.tuning.folder import EVALUATION

    console.print(rich_tables(reports))
    mean = mean_of(reports)
    if mean is not None:
        console.print(mean)
    file: Path = tuned.folder / EVALUATION / "summary.md"
    write_whole(file, markdown(reports) + ("" if mean is None else f"\n{mean}\n"))
    print_files([file])


def mean_of(reports: "list[Report]") -> str | None:
    """The mean over the tasks in words, accuracy in per cent; None of one task, or of several metrics."""
    from headedit.evaluation.tasks.task import ACCURACY

    metrics = {report.metric for report in reports}
    if len(reports) < 2 or len(metrics) > 1:
        return None
    mean = sum(report.score.value for report in reports) / len(reports)
    return f"mean over {len(reports)} tasks: {100 * mean if metrics == {ACCURACY} else mean:.2f}"
