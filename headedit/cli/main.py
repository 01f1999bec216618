"""The command line: all commands, and how errors end. ``headedit COMMAND --help`` has an example for each command."""

import logging
import os
import sys
from typing import Annotated, Any

import typer

from headedit.cli import (
    bench,
    compare,
    config,
    demo,
    doctor,
    eval,
    export,
    import_edits,
    lm_eval,
    merge,
    plan,
    plot,
    report,
    spec,
    sweep,
    table,
    train,
)
from headedit.cli.shared import console
from headedit.cli.stopping import StoppableGroup
from headedit.errors import HeadEditError
from headedit.version import __version__

app = typer.Typer(
    name="headedit",
    cls=StoppableGroup,
    help="Learned, gated edits to the attention heads of any Hugging Face causal LM.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
_GROUPS: dict[str, dict[str, Any]] = {
    "Start here": {"demo": demo.demo, "doctor": doctor.doctor},
    "Train": {"train": train.train, "config": config.app, "plan": plan.plan, "sweep": sweep.sweep},
    "Evaluate": {
        "eval": eval.evaluate,
        "compare": compare.compare,
        "lm-eval": lm_eval.lm_eval,
        "export": export.export,
        "table": table.table,
    },
    "Look at edits": {"plot": plot.plot, "report": report.report},
    "Convert": {"merge": merge.merge, "import": import_edits.app},
    "Models and methods": {"spec": spec.app, "bench": bench.app},
}
for _title, _commands in _GROUPS.items():
    for _name, _command in _commands.items():
        if isinstance(_command, typer.Typer):
            app.add_typer(_command, rich_help_panel=_title)
        else:
            app.command(_name, rich_help_panel=_title)(_command)


def _version(wanted: bool) -> None:
    if wanted:
        console.print(f"headedit {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    from transformers.utils import logging as transformers_logging

    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()


def main(arguments: list[str] | None = None) -> None:
    """Runs the command ``headedit``.

    A user's mistake ends with exit code 2 and one message, an error of our own with 1; --debug shows the traceback.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given
    given = [*(["--debug"] if debug else []), *(a for a in given if a != "--debug")]
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        app(given, prog_name="headedit")
    except HeadEditError as error:
        if debug:
            raise
        print(f"headedit: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt as stop:
        print(f"headedit: {stop or 'stopped.'}", file=sys.stderr)
        raise SystemExit(130) from None
    except Exception as error:
        if debug:
            raise
        print(
            f"headedit: an error in headedit itself, not in your input: {type(error).__name__}: {error}\n"
            "Run the command again with --debug to see where, and please report it.",
            file=sys.stderr,
        )
        raise SystemExit(1) from None
