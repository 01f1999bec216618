"""The command ``headedit lm-eval``: tasks of lm-evaluation-harness, with edits and without."""

from pathlib import Path
from typing import Annotated

import typer

from headedit.cli.next_step import say_next
from headedit.cli.shared import (
    Device,
    Dtype,
    DtypeOption,
    Edits,
    Model,
    Seed,
    SpecFile,
    console,
    listed,
    print_files,
    say_plain,
    write_json,
    write_whole,
)
from headedit.io.tables import rich_table


def lm_eval(
    model: Model,
    tasks: Annotated[str, typer.Option("--tasks", "-t", help="Names or patterns of tasks, such as arc_easy,mmlu_*.")],
    edits: Edits = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Folder for the results.")] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, help="Use only this many documents of each task, from its first.")
    ] = None,
    base: Annotated[bool, typer.Option("--base/--no-base", help="Also evaluate with the edits off.")] = True,
    include_path: Annotated[
        Path | None, typer.Option("--include-path", help="Folder of task files of your own.")
    ] = None,
    num_fewshot: Annotated[
        int | None,
        typer.Option("--num-fewshot", min=0, help="Number of examples in the prompt.  [default: the task's]"),
    ] = None,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Requests per batch.")] = 8,
    apply_chat_template: Annotated[
        bool, typer.Option("--apply-chat-template", help="Format prompts by the tokenizer's chat template.")
    ] = False,
    seed: Seed = 0,
    dtype: DtypeOption = Dtype.auto,
    device: Device = None,
    spec: SpecFile = None,
) -> None:
    """Evaluate a model on tasks of lm-evaluation-harness, with its edits and without.

    Example: `headedit lm-eval --model ./my-model --edits out --tasks arc_easy,boolq --limit 200 --output figures`
    """
    import logging

    from headedit.edits import load
    from headedit.evaluation.harness.report import LEFT
    from headedit.evaluation.harness.run import run_harness
    from headedit.hf.loading import load_model, load_tokenizer
    from headedit.io.files import check_writable

    folder = None if output is None else check_writable(output)
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    loaded, tokenizer = load_model(model, dtype=dtype.value, device=device), load_tokenizer(model)
    report = run_harness(
        loaded,
        tokenizer,
        listed(tasks),
        edits=load(loaded, edits, spec=spec) if edits else None,
        base=base,
        include_path=include_path,
        limit=limit,
        num_fewshot=num_fewshot,
        batch_size=batch_size,
        apply_chat_template=apply_chat_template,
        seed=seed,
    )
    header, rows = report.cells()
    console.print(rich_table("headedit lm-eval", header, rows, left=LEFT))
    paired = " p: of a paired test that edited and base do not differ." if edits and base else ""
    say_plain(f"After ± the standard error.{paired}")
    if folder is not None:
        files = [folder / "lm_eval.json", folder / "lm_eval.md"]
        write_json(files[0], {"model": model, "edits": edits, **report.to_dict()})
        write_whole(files[1], report.markdown())
        print_files(files)
        say_next(f"read {files[1]}")
    else:
        say_next("the same command with --output FOLDER, which keeps the figures")
