"""The command that evaluates the edits of a run, with the run's own model, folder and data."""

import shlex
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from headedit.training.config import RunConfig


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
