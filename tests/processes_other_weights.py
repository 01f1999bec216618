"""A training of edits and a norm for ``torchrun``: ``processes_other_weights.py OUTPUT [shard]``, on two processes.

Each process ends with an error unless the training, resumed from its middle, ends with the same bits, and one of a norm
of which each process has a part is refused by name; with ``shard``, unless FSDP2 is.
"""

import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from processes import ROWS, pretend_an_accelerator
from tiny import tiny_model
from torch import nn
from transformers import TrainingArguments

import headedit
from headedit.data.batches import PadRight

NORM = "model.norm.weight"


def trainer_of(model, output, batch, **options):
    edits = headedit.attach(model)
    model.get_parameter(NORM).requires_grad_(True)
    arguments = TrainingArguments(
        output_dir=str(output),
        per_device_train_batch_size=batch,
        max_steps=4,
        save_steps=2,
        learning_rate=2e-2,
        lr_scheduler_type="constant",
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        remove_unused_columns=False,
        **options,
    )
    return headedit.HeadEditTrainer(edits, args=arguments, train_dataset=ROWS[:32], data_collator=PadRight())


def train(output, batch, checkpoint=None, **options):
    """The handle and the norm's weight after four steps."""
    model = tiny_model("llama")
    trainer = trainer_of(model, output, batch, **options)
    trainer.train(resume_from_checkpoint=checkpoint)
    trainer.save_model()
    return trainer.edits, model.get_parameter(NORM)


def refuse_a_part(output):
    """Trains a norm of which each process has one half, which must be refused."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    model = tiny_model("llama")
    whole = model.get_parameter(NORM).detach()
    model.model.norm.weight = nn.Parameter(distribute_tensor(whole, init_device_mesh("cpu", (2,)), [Shard(0)]))
    with pytest.raises(headedit.HeadEditError, match=rf"Sharded training .*{NORM}.*tensor parallelism"):
        trainer_of(model, output, 4, ddp_backend="gloo").train()


if __name__ == "__main__":
    torch.set_num_threads(1)
    output, *shard = sys.argv[1:]
    if shard:
        pretend_an_accelerator()
        with pytest.raises(headedit.HeadEditError, match=rf"Sharded training .*{NORM}"):
            train(output, 4, fsdp=True, fsdp_config={"version": 2})
        assert not list(Path(output).rglob("*.safetensors"))
    else:
        edits, weight = train(output, 4, ddp_backend="gloo")
        dist.barrier()
        checkpoint = str(Path(output) / "checkpoint-2")
        resumed, again = train(f"{output}-resumed", 4, checkpoint, ddp_backend="gloo")
        assert torch.equal(weight, again)
        assert all(torch.equal(a, b) for a, b in zip(edits.snapshot(), resumed.snapshot(), strict=True))
        first = weight.detach().clone()
        dist.broadcast(first, 0)
        assert torch.equal(first, weight), "the processes have different weights"
        refuse_a_part(f"{output}-part")
    dist.destroy_process_group()
