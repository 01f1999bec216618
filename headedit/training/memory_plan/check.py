"""Whether a run fits the memory that is free, before its weights are loaded."""

import logging

import torch

from headedit.errors import HeadEditError
from headedit.training.config import RunConfig
from headedit.training.memory_plan.free import free_memory
from headedit.training.memory_plan.from_config import setup_of
from headedit.training.memory_plan.memory import show
from headedit.training.memory_plan.planner import Plan, Planner

logger = logging.getLogger(__name__)

_ALL_THE_SAME = "--no-memory-check (memory_check=False) starts it all the same."


def check_memory(run: RunConfig, tokens: int) -> None:
    """Raises a HeadEditError where a run needs more memory than is free; warns where it may.

    The need is what ``headedit plan`` says. A run whose need cannot be planned, or whose model has a device map of the
    user's own, is not checked.

    Args:
        run: the run.
        tokens: length of its longest example.
    """
    if isinstance(run.model.device_map, dict):
        return
    found = _plan(run, tokens)
    if found is None:
        return
    setup = found.setup
    try:
        free = free_memory(setup.device, run.model.device, all_devices=setup.devices > 1)
    except (RuntimeError, AssertionError):  # there is no such device, which loading the model says
        return
    need, careful = found.total - found.process, found.careful - found.process  # the process is there already
    place = "memory" if setup.device == "cpu" else "GPU memory"
    if need > free:
        largest = max(found.shares, key=lambda share: share.total)
        parts = {
            "for the weights": largest.base,
            "for edits and optimizer": largest.trained,
            f"for a step of {setup.batch_size} × {setup.tokens:,} tokens": largest.computing,
        }
        shown = ", ".join(f"{show(number)} {what}" for what, number in parts.items())
        raise HeadEditError(
            f"The run needs {show(need)} of {place} {'per device ' if setup.devices > 1 else ''}({shown}), and "
            f"{show(free)} are free. 'headedit plan CONFIG --fit' finds changes with which it fits, and writes them; "
            f"{_ALL_THE_SAME}"
        )
    if careful > free:
        logger.warning(
            "The run needs about %s of %s, and %s are free: it may not fit. 'headedit plan' says more.",
            show(need),
            place,
            show(free),
        )
    if setup.device == "cuda" and run.model.device_map is None and setup.quantization is None:
        _check_loading(found)


def _check_loading(found: Plan) -> None:
    """Refuses weights that pass through the memory of the machine on their way to the GPU, and do not fit there."""
    free = free_memory("cpu")
    if found.weights > free:
        raise HeadEditError(
            f"The weights take {show(found.weights)} of the machine's memory on their way to the GPU, and {show(free)} "
            f"are free. model.device_map: auto loads them straight onto it; {_ALL_THE_SAME}"
        )


def _plan(run: RunConfig, tokens: int) -> Plan | None:
    try:
        with torch.random.fork_rng(devices=[]):  # a run draws the same numbers with the check as without
            config = run.model.load_config()
            setup = setup_of(run, config, tokens=max(2, tokens))
            return Planner(config, run.edits, spec=run.spec).plan(setup)
    except Exception as error:  # a model's own code may raise anything on tensors without values
        logger.info("The memory of the run is unknown: %s", error)
        return None
