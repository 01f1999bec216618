"""Training with FSDP2: the base model's weights are sharded over the processes, the edits are not.

Edits are small: sharding them would save nothing, and every reader of a gate would have to gather it first. They are
excluded from sharding, and their gradients are averaged here, as FSDP averages those of the parameters it shards.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn

_AVERAGED = "_headedit_averaged"


def exclude_from_sharding(accelerator: Any, edits: nn.Module) -> None:
    """Tells accelerate not to shard the edits, if the run uses FSDP."""
    plugin = getattr(accelerator.state, "fsdp_plugin", None)
    if plugin is not None:
        plugin.ignored_modules = [edits]


def average_gradients(accelerator: Any, parameters: Iterable[nn.Parameter]) -> None:
    """Averages the gradients of unsharded parameters over all processes, at the end of every accumulation."""

    def average(parameter: Tensor) -> None:
        if accelerator.sync_gradients and parameter.grad is not None:
            dist.all_reduce(parameter.grad)
            parameter.grad /= dist.get_world_size()

    for parameter in parameters:
        if not hasattr(parameter, _AVERAGED):  # a second stage trains the same parameters
            hook = parameter.register_post_accumulate_grad_hook(average)  # type: ignore[no-untyped-call]
            setattr(parameter, _AVERAGED, hook)


@contextmanager
def unsharded(trainer: Any) -> Iterator[None]:
    """A context in which a Trainer saves and loads edits and optimiser state as it does without FSDP."""
    before = trainer.is_fsdp_enabled
    trainer.is_fsdp_enabled = False
    try:
        yield
    finally:
        trainer.is_fsdp_enabled = before
