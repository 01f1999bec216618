"""Training with FSDP or DeepSpeed: the base model is shared out over the processes, the edits are not.

See ``headedit.edits.replicas`` for how the edits stay whole and learn the same in every process.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from headedit.errors import HeadEditError


def exclude_from_sharding(accelerator: Any, edits: nn.Module) -> None:
    """Tells accelerate not to shard the edits, if the run uses FSDP."""
    plugin = getattr(accelerator.state, "fsdp_plugin", None)
    if plugin is not None:
        plugin.ignored_modules = [edits]


def refuse_zero3(trainer: Any) -> None:
    """Raises a HeadEditError where DeepSpeed's ZeRO-3 would leave the edits empty outside a forward pass."""
    plugin = getattr(trainer.accelerator.state, "deepspeed_plugin", None) if trainer.is_deepspeed_enabled else None
    if getattr(plugin, "zero_stage", None) == 3:
        raise HeadEditError(
            "deepspeed: ZeRO-3 shares out every parameter, the edits too, and gates and penalty are read where they "
            "are empty. Train with ZeRO-2 (zero_stage: 2), which leaves parameters whole, or with fsdp: true, which "
            "shards the base model and leaves the edits whole."
        )


def learning_rate(optimizer: Any, parameter: nn.Parameter, group: int) -> float:
    """The current learning rate of a parameter.

    Args:
        optimizer: the optimiser.
        parameter: the parameter.
        group: index of its group, for an optimiser that holds flat copies of parameters in their place, as DeepSpeed's.
    """
    groups = optimizer.param_groups
    of_it = next((g for g in groups if any(p is parameter for p in g["params"])), groups[min(group, len(groups) - 1)])
    return float(of_it["lr"])


@contextmanager
def unsharded(trainer: Any) -> Iterator[None]:
    """A context in which a Trainer saves and loads edits and optimiser state as it does without FSDP."""
    before = trainer.is_fsdp_enabled
    trainer.is_fsdp_enabled = False
    try:
        yield
    finally:
        trainer.is_fsdp_enabled = before
