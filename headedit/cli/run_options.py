"""What ``headedit train`` and ``headedit tune`` share: options of a run, and the fields of a config that they set."""

from typing import Annotated, Any

import typer

from headedit.cli.shared import Dtype
from headedit.errors import HeadEditError

BaseModel = Annotated[str | None, typer.Option("--model", "-m", help="Folder or hub id of the base model.")]
RunDtype = Annotated[Dtype | None, typer.Option("--dtype", help="Dtype to load the model in.")]
RunSeed = Annotated[int | None, typer.Option("--seed", help="Random seed.  [default: 0]")]
Resume = Annotated[bool, typer.Option("--resume", help="Resume the run that was stopped in the output folder.")]


def run_fields(
    command: str,
    config: str | None,
    *,
    model: str | None,
    data: str | None,
    output: str | None,
    limit: int | None,
    seed: int | None,
    dtype: Dtype | None,
    device: str | None,
    others: dict[str, Any],
) -> dict[str, Any]:
    """The fields of a run's config that options set, by their names; those of options that are not given are left out.

    Args:
        command: the command, such as ``train``.
        config: the config's file or name.
        model, data, output, limit, seed, dtype, device: the options that both commands have.
        others: fields that the command's own options set.

    Raises:
        HeadEditError: there is no config, and one of the options is missing without which there is no run.
    """
    missing = [name for name, value in (("--model", model), ("--data", data), ("--output", output)) if value is None]
    if config is None and missing:
        listed = f"{', '.join(missing[:-1])}{' and ' if missing[1:] else ''}{missing[-1]}"
        raise HeadEditError(
            f"{listed}: not given. Give {'them' if missing[1:] else 'it'}, or a run's file or name (headedit config "
            "list). "
            f"'headedit {command} --help' has an example of each."
        )
    options = {
        "model.name": model,
        "model.dtype": None if dtype is None else dtype.value,
        "model.device": device,
        "data.train": data,
        "data.examples": limit,
        "data.seed": seed,
        "seed": seed,
        "output": output,
        **others,
    }
    return {key: value for key, value in options.items() if value is not None}
