"""The commands ``headedit bench …``: what edits cost, and whether the recipes find planted heads."""

from pathlib import Path
from typing import Annotated, Any

import typer

from headedit.cli_files import listed, print_files, print_rows, write_bench, write_json
from headedit.errors import HeadEditError

app = typer.Typer(name="bench", rich_markup_mode="markdown")


@app.callback(invoke_without_command=True)
def bench(
    context: typer.Context,
    repeats: Annotated[int, typer.Option("--repeats", min=1, help="Timed runs of each variant.")] = 30,
    layers: Annotated[int, typer.Option("--layers", min=1, help="Layers of the random Llama.")] = 8,
    hidden: Annotated[int, typer.Option("--hidden", min=8, help="Width of it; a multiple of 16.")] = 512,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Sequences a batch.")] = 4,
    tokens: Annotated[int, typer.Option("--tokens", min=2, help="Tokens a sequence.")] = 128,
    device: Annotated[str, typer.Option("--device", help="cpu, cuda:0, …")] = "cpu",
    output: Annotated[Path | None, typer.Option("--output", "-o", help="JSON file for the figures.")] = None,
) -> None:
    """Measure what edits add to a training step and a forward pass, as ratios of medians.

    Whether the recipes find planted heads is measured by `headedit bench localise`.

    Example: `headedit bench --repeats 50`
    """
    if context.invoked_subcommand is not None:
        return
    from headedit.evaluation.bench import Shape, measure_cost

    if hidden % 16:
        raise HeadEditError(f"--hidden {hidden}: expected a multiple of 16, for 8 heads of even width.")
    cost = measure_cost(Shape(layers=layers, hidden=hidden, batch=batch, tokens=tokens), repeats=repeats, device=device)
    rows = [
        ("measured on", f"{cost.device}; {layers} layers of width {hidden}, batch {batch} × {tokens}"),
        ("training step", f"{cost.step_edited:.1f} ms, limit {cost.step_limit:.1f} ms: {cost.step_ratio:.3f} ×"),
        ("forward", f"{cost.forward_edited:.1f} ms, bare {cost.forward_bare:.1f} ms: {cost.forward_ratio:.3f} ×"),
    ]
    print_rows(f"headedit bench (medians of {repeats})", rows)
    if output is not None:
        write_json(output, cost.to_dict())
        print_files([output])


@app.command()
def localise(
    shapes: Annotated[str, typer.Option("--shapes", help="Some of llama, qwen3, gpt2.")] = "llama,qwen3,gpt2",
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="Number of planted problems a shape.")] = 5,
    first_seed: Annotated[int, typer.Option("--first-seed", help="The first seed; the others follow it.")] = 0,
    recipes: Annotated[
        str | None, typer.Option("--recipes", help="Such as 'localise,no gate,LoRA r 8'.  [default: all]")
    ] = None,
    examples: Annotated[int, typer.Option("--examples", min=1, help="Training examples of a problem.")] = 200,
    curve: Annotated[bool, typer.Option("--curve", help="Also by number of examples, 50 to 1000.")] = False,
    nothing: Annotated[bool, typer.Option("--nothing", help="Also the loss where nothing is planted.")] = False,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="A field of every recipe, such as epochs=5; may be repeated.")
    ] = None,
    jobs: Annotated[int, typer.Option("--jobs", "-j", min=1, help="Processes to run in.")] = 1,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for everything written.")] = Path(
        "headedit-bench"
    ),
) -> None:
    """Plant edits in known heads of a small model and see which recipe finds them, and how near it comes.

    LoRA stands beside them, with the best of three learning rates by its test score.

    Example: `headedit bench localise --shapes llama --seeds 2 --recipes localise,jola --jobs 2`
    """
    from headedit.demo import localise_bench
    from headedit.edits.files import check_writable
    from headedit.interpret import bench_plot
    from headedit.specs.strict import read_assignments

    folder = check_writable(output)
    named = listed(shapes)
    chosen = None if recipes is None else listed(recipes)
    numbers = range(first_seed, first_seed + seeds)
    fields = read_assignments(settings or [])

    def common(names: list[str]) -> dict[str, Any]:
        return {"seeds": numbers, "jobs": jobs, "changes": dict.fromkeys(names, fields) if fields else None}

    compared = localise_bench.names_of(chosen)
    result = localise_bench.bench_localise(named, recipes=compared, examples=examples, **common(compared))
    files = write_bench(result, folder, "localise", bench_plot.localisation(result.rows))
    if curve:
        names = list(localise_bench.CURVE_RECIPES) if chosen is None else chosen
        result = localise_bench.bench_curve(recipes=names, shapes=named, **common(names))
        files += write_bench(result, folder, "curve", bench_plot.curve(result.rows))
    if nothing:
        names = list(localise_bench.NOTHING_RECIPES)
        result = localise_bench.bench_nothing(named, examples=examples, **common(names))
        files += write_bench(result, folder, "nothing", None)
    print_files(files)
