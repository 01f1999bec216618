"""Training over several processes that share a base model's weights, FSDP2: the edits are whole in each of them.

They are small, so nothing is gained by sharding them, and everything that reads a gate would have to gather it first.
So they are left out of the shards, and their gradients are averaged here, as FSDP does it for what it shards.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn

_AVERAGED = "_headedit_averaged"


def leave_whole(accelerator: Any, edits: nn.Module) -> None:
    """Tells accelerate not to shard the edits, if it shards at all."""
    plugin = getattr(accelerator.state, "fsdp_plugin", None)
    if plugin is not None:
        plugin.ignored_modules = [edits]


def average_gradients(accelerator: Any, parameters: Iterable[nn.Parameter]) -> None:
    """Averages the gradients of whole parameters over all processes, at the end of every accumulation."""

    def average(parameter: Tensor) -> None:
        if accelerator.sync_gradients and parameter.grad is not None:
            dist.all_reduce(parameter.grad)
            parameter.grad /= dist.get_world_size()

    for parameter in parameters:
        if not hasattr(parameter, _AVERAGED):  # a second stage trains the same parameters
            hook = parameter.register_post_accumulate_grad_hook(average)  # type: ignore[no-untyped-call]
            setattr(parameter, _AVERAGED, hook)


@contextmanager
def as_one(trainer: Any) -> Iterator[None]:
    """A context in which a Trainer saves and loads as if it sharded nothing: edits and optimizer, which are whole."""
    before = trainer.is_fsdp_enabled
    trainer.is_fsdp_enabled = False
    try:
        yield
    finally:
        trainer.is_fsdp_enabled = before
