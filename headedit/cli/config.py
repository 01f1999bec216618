"""The commands ``headedit config …``: the run configs that come with headedit."""

from typing import Annotated

import typer

from headedit.cli.help import Commands
from headedit.cli.next_step import print_next
from headedit.cli.shared import console, print_rows

app = Commands(
    name="config", help="Run configs that come with headedit, to use as they are or to copy.", no_args_is_help=True
)


@app.command("list")
def list_configs() -> None:
    """List the shipped configs and sweeps, and what each is for.

    Example: `headedit config list`
    """
    from headedit.training.config import shipped_configs
    from headedit.training.config.reading import tune_configs
    from headedit.training.sweep.config import shipped_sweeps

    shipped = {"train CONFIG": shipped_configs(), "tune CONFIG": tune_configs(), "sweep SWEEP": shipped_sweeps()}
    for command, files in shipped.items():
        rows = []
        for name, file in files.items():
            lines = file.read_text(encoding="utf-8").splitlines()
            lead = " ".join(line.removeprefix("#").strip() for line in lines[: _end_of_paragraph(lines)])
            rows.append((name, lead))
        print_rows(f"headedit {command}", rows)
    print_next("config", "show", "NAME")


@app.command("show")
def show_config(
    name: Annotated[str, typer.Argument(help="Name of a shipped config or sweep, or a YAML file.")],
) -> None:
    """Print a config or a sweep with its comments, to save, change and run.

    Example: `headedit config show jola-commonsense > run.yaml`
    """
    from headedit.training.config import config_text
    from headedit.training.sweep.config import shipped_sweeps

    sweep = shipped_sweeps().get(name)
    text = config_text(name) if sweep is None else sweep.read_text(encoding="utf-8")
    console.print(text, markup=False, highlight=False, soft_wrap=True, end="")


def _end_of_paragraph(lines: list[str]) -> int:
    return next(
        (i for i, line in enumerate(lines) if line.strip() in ("", "#") or not line.startswith("#")), len(lines)
    )
