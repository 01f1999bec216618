"""Which runs several processes can share out, each training whole ones."""

import os
from collections.abc import Sequence

from headedit.errors import HeadEditError
from headedit.training.sweep.config import PlannedRun

_OF_SEVERAL = ("fsdp", "deepspeed", "parallelism_config")
_BY_ACCELERATE = ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_PARALLELISM_CONFIG")


def check_can_be_shared_out(planned: Sequence[PlannedRun]) -> None:
    """Refuses runs that would need several processes each.

    Raises:
        HeadEditError: the config of a run, or accelerate's own, spreads a model over processes.
    """
    for run in planned:
        for key in _OF_SEVERAL:
            if run.config.training.get(key):
                _refuse(f"{run.name}: training: {key}")
    for name in _BY_ACCELERATE:
        if os.environ.get(name, "").lower() in ("true", "1", "yes"):
            _refuse(f"The config of accelerate ({name})")


def _refuse(what: str) -> None:
    raise HeadEditError(
        f"{what} spreads each run over all processes, but a sweep gives each process whole runs. Train such runs one "
        "by one, with `headedit train` started by the launcher; or leave this setting out."
    )
