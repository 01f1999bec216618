"""What ``headedit plan --fit`` prints and writes: the changes with which a run fits, as a config."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from rich.markup import escape

from headedit.cli.shared import console, print_files, say, write_whole
from headedit.errors import HeadEditError

if TYPE_CHECKING:
    from headedit.training.config import RunConfig
    from headedit.training.memory_plan import Plan, Planner


def fit_and_write(
    config: str,
    given: dict[str, Any],
    run: "RunConfig",
    planner: "Planner",
    plan: "Plan",
    memory: int,
    output: Path | None,
) -> dict[str, Any]:
    """Prints the changes with which a run fits and learns the same, and writes the changed config.

    Args:
        config: the run's file or name.
        given: the overrides from the command line.
        run: the run with them.
        planner: of its model.
        plan: of the run as it is.
        memory: bytes of a device.
        output: file to write; None for one in the working folder, named after the config.

    Returns:
        The changes, and the file; None where none is needed.

    Raises:
        HeadEditError: no change that learns the same is enough, or the file exists already.
    """
    from transformers.utils import is_flash_attn_2_available

    from headedit.io.yaml import read_yaml
    from headedit.training.config.reading import find_config, merge_overrides
    from headedit.training.memory_plan.fit import find_fit
    from headedit.training.memory_plan.memory import show

    accumulation = int(run.training.get("gradient_accumulation_steps", 1))
    flash = is_flash_attn_2_available() and plan.setup.dtype != "float32"
    if plan.verdict(memory) == "fits":
        console.print("It fits as it is; no file is made.")
        return {"changes": [], "file": None}
    found = find_fit(planner, plan, memory, accumulation=accumulation, flash=flash)
    if found is None:
        raise HeadEditError(
            f"No change that learns the same fits {show(memory)}, not even batches of one example with gradient "
            "checkpointing. The same command without --fit lists what changes the precision, the data or the devices."
        )
    if not found.changes:
        console.print("It fits by the estimate, and no change makes it need less; no file is made.")
        return {"changes": [], "file": None}
    for change in found.changes:
        say(f"[green]change:[/] {escape(change)}")
    verdict = found.plan.verdict(memory)
    say(
        f"{verdict}: {show(found.plan.total)} of {show(memory)}; a step may take more, {show(found.plan.careful)} in "
        "total",
    )
    file = Path(f"{Path(config).stem}-fit.yaml") if output is None else output
    if file.exists():
        raise HeadEditError(f"{file}: exists already; name another file with --output, or remove it.")
    lead = f"# {config}, changed by headedit plan --fit for {show(memory)} of memory:\n"
    lead += "".join(f"#   {change}\n" for change in found.changes)
    read: Any = read_yaml(find_config(config))
    data = merge_overrides(read, {**given, **found.settings})
    write_whole(file, lead + yaml.safe_dump(data, sort_keys=False, allow_unicode=True))
    print_files([file])
    return {"changes": list(found.changes), "file": str(file)}
