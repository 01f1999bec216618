"""The commands ``headedit config …``: the run configs that come with headedit."""

from typing import Annotated

import typer

from headedit.cli.shared import console, print_rows

app = typer.Typer(
    name="config", help="Run configs that come with headedit, to use as they are or to copy.", no_args_is_help=True
)


@app.command("list")
def list_configs() -> None:
    """List the shipped configs and what each is for.

    Example: `headedit config list`
    """
    from headedit.training.config import config_text, shipped_configs

    rows = []
    for name in shipped_configs():
        lines = config_text(name).splitlines()
        lead = " ".join(line.removeprefix("#").strip() for line in lines[: _end_of_paragraph(lines)])
        rows.append((name, lead))
    print_rows("headedit train CONFIG", rows)


@app.command("show")
def show_config(name: Annotated[str, typer.Argument(help="Name of a shipped config, or a YAML file.")]) -> None:
    """Print a config with its comments, to save, change and train.

    Example: `headedit config show jola-commonsense > run.yaml`
    """
    from headedit.training.config import config_text

    console.print(config_text(name), markup=False, highlight=False, soft_wrap=True, end="")


def _end_of_paragraph(lines: list[str]) -> int:
    return next(
        (i for i, line in enumerate(lines) if line.strip() in ("", "#") or not line.startswith("#")), len(lines)
    )
