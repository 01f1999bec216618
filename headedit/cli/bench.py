"""The commands ``headedit bench …``: what edits and evaluation cost, and whether recipes find planted heads."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from headedit.cli.bench_gpu import gpu
from headedit.cli.bench_output import print_cost, print_measured, print_read, write_measured
from headedit.cli.help import Commands
from headedit.cli.next_step import say_next
from headedit.cli.shared import (
    Dtype,
    Limit,
    Seed,
    console,
    listed,
    print_files,
    say_plain,
    whole_numbers,
    write_bench,
    write_json,
)
from headedit.errors import HeadEditError, suggest

app = Commands(name="bench")
app.command()(gpu)

Repeats = Annotated[int, typer.Option("--repeats", min=1, help="Timed runs per method.")]
Precision = Annotated[Dtype, typer.Option("--dtype", help="Data type of the weights; auto is float32 for random ones.")]
OnDevice = Annotated[str, typer.Option("--device", help="cpu, cuda:0, …")]
Folder = Annotated[Path, typer.Option("--output", "-o", help="Folder for all files that are written.")]

_COUNTED = ("step_operators", "forward_operators", "parameters", "bytes", "hardened_bytes")


@app.callback(invoke_without_command=True)
def bench(
    context: typer.Context,
    repeats: Repeats = 30,
    shape: Annotated[
        str, typer.Option("--shape", help="Size of a Llama with random weights: tiny, 125M, 1B or 8B.")
    ] = "tiny",
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="Model to measure instead: a folder or a hub id.")
    ] = None,
    layers: Annotated[int | None, typer.Option("--layers", min=1, help="Layers.  [default: the shape's]")] = None,
    hidden: Annotated[int | None, typer.Option("--hidden", min=2, help="Hidden size.  [default: the shape's]")] = None,
    heads: Annotated[
        int | None, typer.Option("--heads", min=1, help="Heads per layer.  [default: the shape's]")
    ] = None,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Sequences per batch.")] = 4,
    tokens: Annotated[int, typer.Option("--tokens", min=2, help="Tokens per sequence.")] = 128,
    dtype: Precision = Dtype.auto,
    device: OnDevice = "cpu",
    attention: Annotated[
        str | None, typer.Option("--attention", help="Attention, such as eager or flash_attention_2.  [default: sdpa]")
    ] = None,
    methods: Annotated[
        str | None, typer.Option("--methods", help="Methods to compare, such as 'edited,lora'.  [default: all]")
    ] = None,
    workloads: Annotated[
        str | None,
        typer.Option("--workloads", help="Workloads to measure, such as 'step,forward,operators'.  [default: all]"),
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="JSON file for the results.")] = None,
) -> None:
    """Measure what edits cost next to the upper bound, LoRA, IA3, pyvene, nnsight and a loop over heads.

    The upper bound is the same model with one trainable vector in its first layer. Runs of all methods alternate in one
    process, and ratios of medians are reported; methods without an allowed ratio run in every fifth round. Counts of
    operators do not depend on other load on the machine. How cost scales is measured by `headedit bench scaling`, a
    routed batch by `headedit bench route`, evaluation by `headedit bench evaluation`; whether the recipes find planted
    heads by `headedit bench localise`; all that a GPU is needed for by `headedit bench gpu`.

    Example: `headedit bench --shape 1B --dtype bfloat16 --device cuda:0 --tokens 512`
    """
    if context.invoked_subcommand is not None:
        return
    from headedit.bench.cost import SHAPES, measure_cost
    from headedit.hf.loading import load_model

    if shape not in SHAPES:
        raise HeadEditError(f"--shape: found '{shape}'.{suggest(shape, SHAPES)}")
    given = {"layers": layers, "hidden": hidden, "heads": heads, "attention": attention}
    changes: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if heads is not None:
        changes["kv_heads"] = None
    chosen = replace(SHAPES[shape], **changes, batch=batch, tokens=tokens, dtype=_dtype(dtype), device=device)
    cost = measure_cost(
        chosen,
        model=None
        if model is None
        else load_model(model, dtype=dtype.value, device=device, attn_implementation=attention),
        methods=None if methods is None else listed(methods),
        workloads=None if workloads is None else listed(workloads),
        repeats=repeats,
    )
    print_cost(cost, model or shape)
    if output is not None:
        write_json(output, cost.to_dict())
        print_files([output])
    else:
        say_next("the same command with --output FILE.json, which keeps the figures")


def _dtype(given: Dtype) -> str:
    return "float32" if given is Dtype.auto else given.value


@app.command()
def scaling(
    sweeps: Annotated[
        str, typer.Option("--sweeps", help="What to vary: some of layers, heads, tokens.")
    ] = "layers,heads,tokens",
    repeats: Repeats = 20,
    dtype: Precision = Dtype.auto,
    device: OnDevice = "cpu",
    output: Folder = Path("headedit-scaling"),
) -> None:
    """Measure how cost scales with layers, heads and tokens, and how large edits are on disk.

    Example: `headedit bench scaling --sweeps layers --repeats 5`
    """
    from headedit.bench.cost import scaling_cost
    from headedit.bench.plots import cost as plots
    from headedit.io.files import check_writable

    folder = check_writable(output)
    rows = scaling_cost(listed(sweeps), repeats=repeats, dtype=_dtype(dtype), device=device)
    times = [key for key in rows[0] if key not in _COUNTED]
    print_measured("Times by size", rows, times)
    print_measured("Operators added, parameters, and bytes on disk, by size", rows, [*times[:2], *_COUNTED])
    write_measured(folder, "scaling", rows, plots.scaling(rows))


@app.command()
def route(
    adapters: Annotated[
        str, typer.Option("--adapters", help="Numbers of adapters on the model, separated by commas.")
    ] = "1,8,64,256,1000",
    layers: Annotated[int, typer.Option("--layers", min=1, help="Layers of a Llama with random weights.")] = 8,
    hidden: Annotated[int, typer.Option("--hidden", min=16, help="Its hidden size, a multiple of 16.")] = 512,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Rows in the batch.")] = 64,
    tokens: Annotated[int, typer.Option("--tokens", min=1, help="Tokens per row.")] = 16,
    repeats: Repeats = 20,
    dtype: Precision = Dtype.auto,
    device: OnDevice = "cpu",
    output: Folder = Path("headedit-route"),
) -> None:
    """Measure a batch in which every row has its own adapter, against one adapter and against the bare model.

    Example: `headedit bench route --adapters 1,8,64`
    """
    from headedit.bench.cost import Shape, route_cost
    from headedit.bench.plots import cost as plots
    from headedit.io.files import check_writable

    folder = check_writable(output)
    numbers = sorted(set(whole_numbers(adapters, "--adapters")))
    if numbers[0] < 1:
        raise HeadEditError(f"--adapters: found '{adapters}', expected numbers of at least 1.")
    shape = Shape(layers=layers, hidden=hidden, batch=batch, tokens=tokens, dtype=_dtype(dtype), device=device)
    rows = route_cost(shape, numbers=numbers, repeats=repeats)
    print_measured("Cost of a routed batch", rows)
    say_plain(
        "forward: one pass over the batch, and its ratio to one adapter for all rows and to the bare model; enter: to "
        "enter edits.route, first with adapters that were not used before; add: to add one adapter."
    )
    write_measured(folder, "route", rows, plots.adapters(rows))


@app.command()
def localise(
    shapes: Annotated[
        str, typer.Option("--shapes", help="Architectures: some of llama, qwen3, gpt2.")
    ] = "llama,qwen3,gpt2",
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="Number of planted problems per architecture.")] = 5,
    first_seed: Annotated[int, typer.Option("--first-seed", help="First seed; the others follow it.")] = 0,
    recipes: Annotated[
        str | None,
        typer.Option("--recipes", help="Recipes to compare, such as 'localise,no gate,LoRA r 8'.  [default: all]"),
    ] = None,
    examples: Annotated[int, typer.Option("--examples", min=1, help="Training examples per problem.")] = 200,
    curve: Annotated[bool, typer.Option("--curve", help="Also vary the number of examples, from 50 to 1000.")] = False,
    nothing: Annotated[bool, typer.Option("--nothing", help="Also measure the loss where nothing is planted.")] = False,
    calibration: Annotated[
        bool,
        typer.Option("--calibration", help="Only compare nominal with true rates of false heads, on small problems."),
    ] = False,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="A field of every recipe, such as epochs=5; may be repeated.")
    ] = None,
    jobs: Annotated[int, typer.Option("--jobs", "-j", min=1, help="Processes in parallel.")] = 1,
    output: Folder = Path("headedit-bench"),
) -> None:
    """Plant edits in known heads of a small model and see which recipe finds them.

    LoRA is shown next to them, with the best of three learning rates by its test score. With `--calibration`, stability
    selection is tested instead: how many of the heads it is sure of are false. Problems that are finished are kept in
    the folder, and a run that was stopped is resumed after them.

    Example: `headedit bench localise --shapes llama --seeds 2 --recipes localise,jola --jobs 2`
    """
    from headedit.bench.plots import recovery as plots
    from headedit.bench.recovery import localisation
    from headedit.io.files import check_writable
    from headedit.io.strict import read_assignments

    folder = check_writable(output)
    named = listed(shapes)
    chosen = None if recipes is None else listed(recipes)
    numbers = range(first_seed, first_seed + seeds)
    if calibration:
        from headedit.bench.recovery.calibration import bench_calibration

        result = bench_calibration(named, numbers, folder=folder, jobs=jobs)
        print_read(write_bench(result, folder, "calibration", plots.calibration(result.summary, result.rows)))
        return
    fields = read_assignments(settings or [])

    def common(names: list[str]) -> dict[str, Any]:
        return {"seeds": numbers, "jobs": jobs, "changes": dict.fromkeys(names, fields) if fields else None}

    compared = localisation.names_of(chosen)
    result = localisation.bench_localise(named, recipes=compared, examples=examples, **common(compared))
    files = write_bench(result, folder, "localise", plots.localisation(result.rows))
    if curve:
        names = list(localisation.CURVE_RECIPES) if chosen is None else chosen
        result = localisation.bench_curve(recipes=names, shapes=named, **common(names))
        files += write_bench(result, folder, "curve", plots.curve(result.rows))
    if nothing:
        names = list(localisation.NOTHING_RECIPES)
        result = localisation.bench_nothing(named, examples=examples, **common(names))
        files += write_bench(result, folder, "nothing", None)
    print_read(files)


@app.command()
def evaluation(
    model: Annotated[str, typer.Argument(help="Folder or hub id of a causal LM.")],
    task: Annotated[str, typer.Argument(help="A task's name or YAML file.")],
    data: Annotated[str | None, typer.Option("--data", "-d", help="Records.  [default: the task's]")] = None,
    scoring: Annotated[
        str | None, typer.Option("--scoring", help="generation or loglikelihood.  [default: the task's]")
    ] = None,
    limit: Limit = None,
    seed: Seed = 0,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Examples per batch.")] = 32,
    peer_batch_sizes: Annotated[
        str, typer.Option("--peer-batch-sizes", help="Requests per batch of the harness; each is measured.")
    ] = "8,32",
    line: Annotated[
        bool, typer.Option("--line/--no-line", help="The harness, too, stops at the end of a line, an empty one too.")
    ] = True,
    repeats: Annotated[int, typer.Option("--repeats", min=1, help="Timed runs of each.")] = 3,
    threads: Annotated[int | None, typer.Option("--threads", min=1, help="Threads.  [default: torch's]")] = None,
    dtype: Precision = Dtype.auto,
    device: OnDevice = "cpu",
    output: Folder = Path("headedit-evaluation"),
) -> None:
    """Measure how fast a task is evaluated, next to lm-evaluation-harness, and whether the answers are the same.

    Runs of both alternate in one process. Without lm_eval installed, headedit is measured alone.

    Example: `headedit bench evaluation ./my-model task.yaml --data test.json --scoring loglikelihood --limit 96`
    """
    import torch

    from headedit.bench.evaluation import measure_evaluation
    from headedit.evaluation.tasks.task_files import find_task
    from headedit.hf.loading import load_model, load_tokenizer
    from headedit.io.files import check_writable

    folder = check_writable(output)
    chosen = find_task(task, **({} if scoring is None else {"scoring": scoring}))
    sizes = whole_numbers(peer_batch_sizes, "--peer-batch-sizes")
    if min(sizes) < 1:
        raise HeadEditError(f"--peer-batch-sizes: found '{peer_batch_sizes}', expected numbers of at least 1.")
    if threads is not None:
        torch.set_num_threads(threads)
    result = measure_evaluation(
        load_model(model, dtype=dtype.value, device=device),
        load_tokenizer(model),
        chosen,
        data=data,
        limit=limit,
        seed=seed,
        batch_size=batch_size,
        peer_batch_sizes=sizes,
        stop="\n" if line else "",
        repeats=repeats,
    )
    files = write_bench(result, folder, f"evaluation-{chosen.scoring}", None)
    left_out = str(result.settings["lm_eval"])
    if left_out.startswith("left out"):
        console.print(f"lm-evaluation-harness was {left_out}")
    print_read(files)
