"""The command line: all commands, and how errors end. ``headedit COMMAND --help`` has an example for each command."""

import logging
import os
import sys
import warnings
from typing import Annotated, Any

import typer

from headedit.cli import (
    bench,
    compare,
    config,
    convert,
    demo,
    doctor,
    dpo,
    errors,
    eval,
    export,
    import_edits,
    lm_eval,
    merge,
    plan,
    plot,
    report,
    serve,
    spec,
    sweep,
    table,
    train,
    tune,
)
from headedit.cli.errors import point_to_page
from headedit.cli.help import Commands
from headedit.cli.released_flags import check_released_flags
from headedit.cli.shared import NarrowFormatter, console, tell_error
from headedit.cli.stopping import StoppableGroup
from headedit.errors import HeadEditError
from headedit.version import __version__

app = Commands(
    name="headedit",
    cls=StoppableGroup,
    help="Learned, gated edits to the attention heads of any Hugging Face causal LM.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
_GROUPS: dict[str, dict[str, Any]] = {
    "Start here": {"demo": demo.demo, "doctor": doctor.doctor, "errors": errors.errors},
    "Train": {
        "train": train.train,
        "tune": tune.tune,
        "config": config.app,
        "plan": plan.plan,
        "sweep": sweep.sweep,
        "dpo": dpo.dpo,
    },
    "Evaluate": {
        "eval": eval.evaluate,
        "compare": compare.compare,
        "lm-eval": lm_eval.lm_eval,
        "export": export.export,
        "table": table.table,
    },
    "Look at edits": {"plot": plot.plot, "report": report.report},
    "Serve": {"serve": serve.serve},
    "Convert": {"merge": merge.merge, "convert": convert.convert, "import": import_edits.app},
    "Models and methods": {"spec": spec.app, "bench": bench.app},
}
_SETTINGS: dict[str, dict[str, Any]] = {  # of commands that pass options on
    "serve": {"allow_extra_args": True, "ignore_unknown_options": True},
}
for _title, _commands in _GROUPS.items():
    for _name, _command in _commands.items():
        if isinstance(_command, typer.Typer):
            app.add_typer(_command, rich_help_panel=_title)
        else:
            app.command(_name, rich_help_panel=_title, context_settings=_SETTINGS.get(_name))(_command)


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

    handler = logging.StreamHandler()
    handler.setFormatter(NarrowFormatter("%(message)s"))
    logging.basicConfig(handlers=[handler], level=logging.WARNING)
    if not debug:
        for library in ("accelerate", "datasets", "peft", "torch", "transformers", "trl"):  # for their callers
            warnings.filterwarnings("ignore", category=FutureWarning, module=rf"{library}(\.|$)")
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()


def main(arguments: list[str] | None = None) -> None:
    """Runs the command ``headedit``.

    A user's mistake ends with exit code 2, one message and the command that explains it, an error of our own with 1;
    --debug shows the traceback.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given
    given = [*(["--debug"] if debug else []), *(a for a in given if a != "--debug")]
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        if "train" in given[:2]:
            check_released_flags(given)
        app(given, prog_name="headedit")
    except HeadEditError as error:
        if debug:
            raise
        tell_error(f"headedit: {error}")
        point_to_page(error)
        raise SystemExit(2) from None
    except KeyboardInterrupt as stop:
        tell_error(f"headedit: {str(stop) or 'stopped.'}")
        raise SystemExit(130) from None
    except Exception as error:
        if debug:
            raise
        tell_error(
            f"headedit: an error in headedit itself, not in your input: {type(error).__name__}: {error}\n"
            "Run the command again with --debug to see where, and please report it."
        )
        raise SystemExit(1) from None
