"""The command ``headedit serve``: vLLM with edits, another for each request."""

import os
from typing import Annotated

import typer


def serve(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="Folder or hub id of the base model.")],
    edits: Annotated[
        list[str],
        typer.Option(
            "--edits", "-e", help="Folder of saved edits, folder of such folders, or name=folder; again for more."
        ),
    ],
    slots: Annotated[int | None, typer.Option("--slots", min=1, help="How many edits a batch can have.")] = None,
    updates: Annotated[
        bool,
        typer.Option("--updates/--no-updates", help="Let clients load and unload edits that lie below these folders."),
    ] = True,
) -> None:
    """Serve a model in vLLM with edits that each request chooses; other options are those of `vllm serve`.

    Example: `headedit serve ./my-model --edits ./edits --port 8000`
    """
    from headedit.serving.command import command, environment

    arguments = command(model, context.args)
    os.environ.update(environment(edits, slots=slots, updates=updates))
    os.execv(arguments[0], arguments)
