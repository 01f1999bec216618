"""A run of ``fit`` for ``torchrun``: ``processes.py OUTPUT BATCH RECIPE [shard]``, on two processes over gloo.

accelerate shards on accelerators only; with ``shard`` the CPU is presented to it as one.
"""

import os
import sys

import torch
from tiny import tiny_model

import headedit

ROWS = [
    {"input_ids": [i, i + 1, 3 + i % 7] + [5] * (i % 4), "labels": [-100, i + 1, 3 + i % 7] + [5] * (i % 4)}
    for i in range(3, 43)
]
RECIPES = {
    "jola": {"epochs": 3, "vector_lr": 0.05, "gate_lr": 0.2, "init_std": 0.01},
    "localise": {"epochs": 2, "search_epochs": 2, "min_steps": 1},
}


def train(output, batch, recipe, **arguments):
    edits = headedit.attach(tiny_model("llama"))
    options = {"recipe": recipe, "batch_size": batch, "progress": False, **RECIPES[recipe]}
    headedit.fit(edits, ROWS[:32], ROWS[32:], output_dir=output, arguments={"use_cpu": True, **arguments}, **options)
    return edits


def pretend_an_accelerator():
    from accelerate.state import PartialState
    from accelerate.utils import DistributedType

    torch.distributed.init_process_group("gloo")
    PartialState._prepare_backend = lambda self, *args, **kwargs: ("gloo", DistributedType.MULTI_GPU)
    PartialState.set_device = lambda self: setattr(self, "device", torch.device("cpu"))


if __name__ == "__main__":
    torch.set_num_threads(1)
    output, batch, recipe, *shard = sys.argv[1:]
    if shard:
        pretend_an_accelerator()
        edits = train(output, int(batch), recipe, fsdp=True, fsdp_config={"version": 2})
        weight = edits.sites[0].module.weight
        assert isinstance(weight, torch.distributed.tensor.DTensor)
        assert all(type(p) is torch.nn.Parameter for p in edits.module.parameters())
        checkpoints = [name for _, _, files in os.walk(output) for name in files]
        assert not any(name.startswith(("model", "pytorch_model")) for name in checkpoints), checkpoints
    else:
        train(output, int(batch), recipe, ddp_backend="gloo")
    torch.distributed.destroy_process_group()
