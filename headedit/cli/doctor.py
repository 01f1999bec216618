"""The command ``headedit doctor``: what ``attach`` would change in a model, and what will not work with it."""

from pathlib import Path
from typing import Annotated

import typer

from headedit.cli.shared import Device, Dtype, DtypeOption, print_rows


def doctor(
    model: Annotated[str, typer.Argument(help="Folder or hub id of the base model.")],
    spec: Annotated[
        Path | None, typer.Option("--spec", help="Spec file to use, instead of the one that headedit finds.")
    ] = None,
    dtype: DtypeOption = Dtype.auto,
    device: Device = None,
) -> None:
    """Show what `attach` would change in a model, what will not work with it, and why.

    Example: `headedit doctor ./my-model`
    """
    from headedit.checks.doctor import doctor as examine
    from headedit.hf.loading import load_model

    print_rows(f"headedit doctor {model}", examine(load_model(model, dtype=dtype.value, device=device), spec))
