"""The command ``headedit plan``: how much memory a run needs on each device, and what to change if it does not fit."""

from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from headedit.cli.json_output import Json, put_json, takes_json
from headedit.cli.next_step import print_next, say_next
from headedit.cli.plan_fit import fit_and_write
from headedit.cli.shared import Dtype, console, print_rows, say
from headedit.errors import HeadEditError
from headedit.io.tables import rich_table

if TYPE_CHECKING:
    from headedit.training.config import RunConfig
    from headedit.training.memory_plan import Plan, Setup


_APART = ("model.name", "data.train")  # given to `headedit train` by options of their own


@takes_json
def plan(
    config: Annotated[
        str | None,
        typer.Argument(metavar="CONFIG", help="YAML file of a run, or a name from `headedit config list`."),
    ] = None,
    model: Annotated[str | None, typer.Option("--model", "-m", help="Folder or hub id of the base model.")] = None,
    batch_size: Annotated[
        int | None, typer.Option("--batch-size", min=1, help="Examples per step and device.  [default: the recipe's]")
    ] = None,
    max_length: Annotated[
        int | None, typer.Option("--max-length", min=2, help="Length of the longest example, in tokens.")
    ] = None,
    dtype: Annotated[Dtype | None, typer.Option("--dtype", help="Dtype to load the model in.")] = None,
    quantization: Annotated[str | None, typer.Option("--quantization", help="4bit or 8bit.")] = None,
    checkpointing: Annotated[
        bool | None, typer.Option("--checkpointing/--no-checkpointing", help="Train with gradient checkpointing.")
    ] = None,
    attention: Annotated[
        str | None, typer.Option("--attention", help="Attention: eager, sdpa or flash.  [default: the run's]")
    ] = None,
    devices: Annotated[
        int | None, typer.Option("--devices", min=1, help="Number of devices that share the model.  [default: 1]")
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(
            "--split",
            help="How they share it: device_map puts whole layers on each, fsdp a part of every weight, "
            "tensor_parallel a part of every layer.",
        ),
    ] = None,
    memory: Annotated[
        str | None,
        typer.Option("--memory", help="Memory of one device, such as 24GiB.  [default: that of this machine]"),
    ] = None,
    device: Annotated[str | None, typer.Option("--device", help="Kind of device: cpu or cuda.")] = None,
    fit: Annotated[
        bool,
        typer.Option(
            "--fit",
            help="Find the changes with which the run fits and learns the same (smaller batches with more "
            "accumulation, gradient checkpointing), print them, and write the changed config.",
        ),
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="File for the config of --fit.  [default: CONFIG-fit.yaml]"),
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="A field of the config: section.key=value; may be repeated.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Show how much memory a run needs, before any weight is loaded, whether it fits, and what to change.

    Example: `headedit plan run.yaml --memory 24GiB`

    Example: `headedit plan olmo2-13b-sharegpt --memory 40GiB --fit --output run.yaml`

    Example: `headedit plan --model ./my-model --batch-size 4 --max-length 2048 --checkpointing --memory 80GB`

    Example: `headedit plan --model ./my-model --max-length 2048 --devices 4 --split tensor_parallel --memory 80GB`
    """
    from headedit.io.strict import read_assignments
    from headedit.training.config import read_run
    from headedit.training.memory_plan import Planner, advise
    from headedit.training.memory_plan.from_config import setup_of
    from headedit.training.memory_plan.memory import memory_of, read_memory, show

    if config is None and model is None:
        raise HeadEditError("Give a run's file or name (headedit config list), or --model.")
    if fit and config is None:
        raise HeadEditError("--fit changes the config of a run; give its file or name.")
    named = {
        "model.name": model,
        "model.dtype": None if dtype is None else dtype.value,
        "model.quantization": quantization,
        "data.max_length": max_length,
        "recipe.batch_size": batch_size,
        "training.gradient_checkpointing": checkpointing,
        **({"data.train": "train.jsonl"} if config is None else {}),  # never read
    }
    given = {key: value for key, value in named.items() if value is not None} | read_assignments(settings or [])
    run = read_run(config, given)
    base = run.model.load_config()
    limit = None if memory is None else read_memory(memory)
    changes = {"attention": attention, "devices": devices, "split": split, "device": device}
    setup = setup_of(
        run, base, for_gpu=limit is not None, **{key: value for key, value in changes.items() if value is not None}
    )
    limit = memory_of(setup.device) if limit is None else limit
    again = _given(named if config is not None else {key: named[key] for key in named if key not in _APART}, settings)
    planner = Planner(base, run.edits, spec=run.spec)
    found = planner.plan(setup)
    _print_plan(run, found, limit)
    if fit and config is not None:
        if attention is not None:
            given["model.attn_implementation"] = "flash_attention_2" if attention == "flash" else attention
        fitted = fit_and_write(config, given, run, planner, found, limit, output)
        put_json({**plan_record(run, found, limit), "fit": fitted})
        print_next("train", fitted["file"] or config, *([] if fitted["file"] else again))
        return
    advice = advise(planner, found, limit)
    for change in advice:
        _print_change(change.what, change.plan, limit)
    changes_of = [{"change": each.what, **_verdict(each.plan, limit)} for each in advice]
    put_json({**plan_record(run, found, limit), "changes": changes_of})
    if found.verdict(limit) == "fits":
        of_run = ["--model", model, "--data", "FILE", "--output", "FOLDER"] if config is None else [config]
        print_next("train", *of_run, *again)
    elif config is not None:
        own = [word for key, value in changes.items() if value is not None for word in (f"--{key}", value)]
        print_next("plan", config, *again, *own, "--memory", show(limit).replace(" ", ""), "--fit")
    else:
        say_next("the same command with one of these changes" if advice else "a smaller model, or more memory")


def _given(named: dict[str, Any], settings: list[str] | None) -> list[str]:
    """The options of a run that were given, as ``--set`` takes them: those with a name of their own, then others."""
    words = {key: str(value).lower() if isinstance(value, bool) else value for key, value in named.items()}
    assigned = [f"{key}={value}" for key, value in words.items() if value is not None] + (settings or [])
    return [word for setting in assigned for word in ("--set", setting)]


def plan_record(run: "RunConfig", found: "Plan", memory: int) -> dict[str, Any]:
    """A plan as plain data, in bytes.

    Args:
        run: the run.
        found: its plan.
        memory: bytes of a device.
    """
    return {"model": run.model.name, "memory": memory, **_verdict(found, memory), **asdict(found)}


def _verdict(found: "Plan", memory: int) -> dict[str, Any]:
    return {"verdict": found.verdict(memory), "total": found.total, "careful": found.careful}


def _print_plan(run: "RunConfig", found: "Plan", memory: int) -> None:
    from headedit.training.memory_plan.memory import show
    from headedit.training.memory_plan.planner import UNCERTAINTY

    rows = [("a training step", _described(found.setup)), *((what, show(size)) for what, size in found.rows())]
    rows.append(("parameters of the edits", f"{found.parameters:,}"))
    print_rows(f"headedit plan {run.model.name}", rows)
    header, cells = device_table(found)
    console.print(rich_table("each device", header, cells))
    verdict = found.verdict(memory)
    colour = {"fits": "green", "tight": "yellow"}.get(verdict, "red")
    say(
        f"[{colour}]{verdict}[/]: {show(found.total)} of {show(memory)}; a step may take "
        f"{UNCERTAINTY:.0%} more, {show(found.careful)} in total",
    )


def device_table(found: "Plan") -> tuple[list[str], list[list[str]]]:
    """Header and cells of the table of devices, in which those with equal shares share a line."""
    from headedit.training.memory_plan.memory import show

    header = ["device", "base model", "edits", "saved", "working", "process", "in all"]
    cells = []
    for share, group in groupby(range(len(found.shares)), found.shares.__getitem__):
        members = list(group)
        base = share.base + share.gathered
        parts = (base, share.trained, share.saved, share.working, share.process, share.total)
        device = str(members[0]) if len(members) == 1 else f"{members[0]} to {members[-1]}"
        cells.append([device, *map(show, parts)])
    return header, cells


def _described(setup: "Setup") -> str:
    parts: list[Any] = [f"{setup.batch_size} x {setup.tokens:,} tokens", setup.dtype]
    if setup.quantization is not None:
        parts.append(setup.quantization)
    parts.append(f"{'with' if setup.checkpointing else 'without'} gradient checkpointing")
    if setup.attention is not None:
        parts.append(f"{setup.attention} attention")
    if setup.devices > 1:
        parts.append(f"{setup.devices} devices by {setup.split}")
    return ", ".join(parts)


def _print_change(what: str, found: "Plan", memory: int) -> None:
    from headedit.training.memory_plan.memory import show

    say(f"  {escape(what)}: {show(found.total)}, {found.verdict(memory)}")
