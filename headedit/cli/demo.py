"""The command ``headedit demo``: the embedded model learns a task, alone or next to every other method."""

from pathlib import Path
from typing import Annotated

import typer

from headedit.cli.next_step import print_next
from headedit.cli.shared import Seed, listed, print_files, print_rows, whole_numbers, write_bench


def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for all files that are written.")] = Path(
        "headedit-demo"
    ),
    task: Annotated[
        str, typer.Option("--task", help="Task to teach: copy, reverse, sort, next, first or swap.")
    ] = "reverse",
    seed: Seed = 0,
    compare: Annotated[
        bool, typer.Option("--compare", help="Also train with other recipes and LoRA, and compare them.")
    ] = False,
    tasks: Annotated[
        str | None, typer.Option("--tasks", help="With --compare: tasks to compare on.  [default: that of --task]")
    ] = None,
    sizes: Annotated[str, typer.Option("--sizes", help="With --compare: numbers of training examples.")] = "200",
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="With --compare: number of seeds.")] = 1,
    jobs: Annotated[int, typer.Option("--jobs", "-j", min=1, help="With --compare: processes in parallel.")] = 1,
) -> None:
    """Teach a small embedded model one task from 200 examples, and draw the heads that were chosen.

    Example: `headedit demo --output my-demo --compare --tasks reverse,swap --sizes 8,200`
    """
    from headedit.demo.run import add_to_summary, run_demo
    from headedit.runs.files import EDITS_TENSOR_FILE

    if compare:
        from headedit.bench.compare.tasks import check_comparison, compare_methods
        from headedit.bench.plots.compare import tasks as draw_tasks
        from headedit.demo.comparison import DEMO_TASKS

        chosen = [task] if tasks is None else listed(tasks)
        numbers, counts = range(seed, seed + seeds), whole_numbers(sizes, "--sizes")
        check_comparison(DEMO_TASKS, chosen, counts, numbers)
    result = run_demo(output, task=task, seed=seed)
    print_rows("headedit demo", result.rows())
    print_files([*result.files, result.run.output_dir / EDITS_TENSOR_FILE])
    if compare:
        compared = compare_methods(DEMO_TASKS, chosen, counts, numbers, jobs=jobs)
        files = write_bench(compared, output, "compare", draw_tasks(compared.rows))
        add_to_summary(output, compared)
        print_files(files)
    print_next("report", output)
