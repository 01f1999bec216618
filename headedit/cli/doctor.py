"""The command ``headedit doctor``: what ``attach`` would change in a model, and what will not work with it."""

from pathlib import Path
from typing import Annotated

import typer

from headedit.cli.json_output import Json, put_json, takes_json
from headedit.cli.next_step import print_next
from headedit.cli.shared import Device, Dtype, DtypeOption, print_rows


@takes_json
def doctor(
    model: Annotated[str, typer.Argument(help="Folder or hub id of the base model.")],
    spec: Annotated[
        Path | None, typer.Option("--spec", help="Spec file to use, instead of the one that headedit finds.")
    ] = None,
    dtype: DtypeOption = Dtype.auto,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Show what `attach` would change in a model, what will not work with it, and why.

    Example: `headedit doctor ./my-model`
    """
    from headedit.checks.doctor import doctor_rows, examine
    from headedit.hf.loading import load_model

    found = examine(load_model(model, dtype=dtype.value, device=device), spec)
    print_rows(f"headedit doctor {model}", doctor_rows(found))
    put_json({"model": model, **found})
    given = [] if spec is None else ["--spec", spec]
    print_next("train", "--model", model, *given, "--data", "FILE", "--output", "FOLDER")
