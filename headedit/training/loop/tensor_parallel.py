"""Training a tensor-parallel model: all processes of a group take the same examples, and each has whole edits."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator, ParallelismConfig
from accelerate.utils import DistributedType
from torch import nn

from headedit.edits import HeadEdits
from headedit.hf.sharding import data_parallel_size
from headedit.training.loop.throughput import Throughput


class ParallelismOnCpus(ParallelismConfig):  # type: ignore[misc]
    """The parallelism of a model, for accelerate, which takes one on accelerators alone; on CPUs it is the same."""

    def _validate_accelerator(self, accelerator: Accelerator) -> None:
        if accelerator.distributed_type != DistributedType.MULTI_CPU:
            super()._validate_accelerator(accelerator)


@contextmanager
def with_optimizer_checkpoints(model: nn.Module, args: Any) -> Iterator[None]:
    """A context in which a Trainer is made that writes the optimiser state of a model that was sharded when loaded.

    transformers' Trainer cannot checkpoint the optimiser state of sharded parameters; that of edits is whole in every
    process.

    Args:
        model: the model.
        args: the Trainer's ``TrainingArguments``; None for its own.
    """
    if args is None or args.save_only_model or not getattr(model, "is_distributed_loading_by_transformers", False):
        yield
        return
    args.save_only_model = True
    try:
        yield
    finally:
        args.save_only_model = False


_TrainerMethods: Any = object  # a Trainer comes after it in the bases, and has the methods that it calls


class SharesLayers(_TrainerMethods):  # type: ignore[misc]
    """The methods of ``HeadEditMixin`` that know which processes share the layers of the model, and so the examples.

    Fields:
        edits: the handle.
    """

    edits: HeadEdits

    def create_accelerator_and_postprocess(self) -> None:
        """Makes the accelerator; see ``transformers.Trainer``."""
        size = getattr(self.model, "tp_size", None) or 1
        if self.args.device.type == "cpu" and size > 1:
            self.args._setup_devices = torch.device("cpu")  # torch can restore no optimiser state to a cpu:0
            if self.args.parallelism_config is None:
                self.args.parallelism_config = ParallelismOnCpus(tp_size=size)
        super().create_accelerator_and_postprocess()

    def _new_throughput(self) -> Throughput:
        projections = (site.module for site in self.edits.sites)
        return Throughput(data_parallel_size(self.args.world_size, self.edits.model, projections), self.args.device)
