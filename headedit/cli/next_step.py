"""What to do after a command: the next command, printed as its last line."""

import shlex
from typing import TYPE_CHECKING

from headedit.cli.shared import console, narrow_width, say_plain
from headedit.io.wrapping import wrap_command

if TYPE_CHECKING:
    from headedit.training.config import RunConfig


def print_next(*words: object, remark: str = "") -> None:
    """Prints a command as what to do next, in lines of a narrow terminal that a shell reads as one command.

    Args:
        words: of the command, without ``headedit``; those that are None are left out.
        remark: what else should be known of it.
    """
    print_command(shlex.join(["headedit", *(str(word) for word in words if word is not None)]), remark=remark)


def print_command(command: str, *, remark: str = "") -> None:
    """The same for a whole command line."""
    width = narrow_width()
    line = f"next: {command}" if width is None else wrap_command("next: ", command, width)
    console.print(line if width is not None or not remark else f"{line}  ({remark})", markup=False, soft_wrap=True)
    if width is not None and remark:
        say_plain(f"({remark})")


def say_next(sentence: str) -> None:
    """Prints a sentence as what to do next, where that is no command of headedit."""
    say_plain(f"next: {sentence}")


def eval_command(run: "RunConfig") -> tuple[str, bool]:
    """The command line of ``headedit eval`` for a run that is finished.

    Args:
        run: the run.

    Returns:
        The command; and whether its records are the run's test or validation set, and not those that it trained on.
    """
    held_out = [source for source in (run.data.test, run.data.valid) if isinstance(source, str | list)]
    chosen = (held_out or [run.data.train])[0]
    options = {
        "--model": run.model.name,
        "--edits": run.output,
        "--data": chosen if isinstance(chosen, str) else chosen[0],
        "--spec": run.spec,
        "--fields": ",".join(f"{name}={other}" for name, other in (run.data.fields or {}).items()) or None,
        "--dtype": None if run.model.dtype == "auto" else run.model.dtype,
        "--device": run.model.device,
    }
    words = ["headedit", "eval", *(word for key, value in options.items() if value for word in (key, value))]
    return shlex.join([*words, *(["--skip-broken"] if run.data.skip_malformed else [])]), bool(held_out)
