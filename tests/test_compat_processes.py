"""Works with: several processes, by DDP and FSDP2."""

from functools import partial

import pytest
import torch
from third_party import edited
from tiny import logits, tiny_model
from torch import distributed, multiprocessing

import headedit
from headedit import HeadEditError


def gradients_of(model, edits, rows):
    model.zero_grad()
    model(input_ids=rows, labels=rows).loss.backward()
    return [p.grad.full_tensor() if hasattr(p.grad, "full_tensor") else p.grad for p in edits.vector_parameters()]


def one_of_two(rank, ids, folder):
    """What each of two processes does, with one row of the batch."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    close = partial(torch.testing.assert_close, rtol=1e-5, atol=1e-7)
    model = tiny_model("llama")
    base = logits(model, ids)
    edits = edited(model)
    wanted, gradients = logits(model, ids), [g.clone() for g in gradients_of(model, edits, ids)]

    model = tiny_model("llama")
    edits = edited(model)
    replicated = torch.nn.parallel.DistributedDataParallel(model)
    assert torch.equal(logits(replicated, ids), wanted)
    close(gradients_of(replicated, edits, ids[rank : rank + 1]), gradients)

    model = tiny_model("llama")
    edits = edited(model)
    mesh = init_device_mesh("cpu", (2,))
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    assert torch.equal(logits(model, ids), wanted)
    with edits.disable_adapter():
        assert torch.equal(logits(model, ids), base)
    close(gradients_of(model, edits, ids[rank : rank + 1]), gradients)
    with pytest.raises(HeadEditError, match="its weight is sharded over processes"):
        edits.merge_adapter()
    distributed.destroy_process_group()


def one_of_two_with_half_the_heads(rank, folder):
    """Attaching to a model whose projections each process has some of the inputs of."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor.parallel import RowwiseParallel, parallelize_module

    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    model = tiny_model("llama")
    mesh = init_device_mesh("cpu", (2,))
    parallelize_module(model, mesh, {"model.layers.*.self_attn.o_proj": RowwiseParallel()})
    with pytest.raises(HeadEditError, match="tensor-parallel: each process has some of its heads"):
        headedit.attach(model)
    distributed.destroy_process_group()


def run_in_two(work, *arguments):
    context = multiprocessing.spawn(work, arguments, nprocs=2, join=False)
    while not context.join():  # raises what a process raised
        pass
    assert [process.exitcode for process in context.processes] == [0, 0]


@pytest.mark.skipif(not distributed.is_available(), reason="torch without distributed")
def test_a_tensor_parallel_model_is_refused_by_name(tmp_path):
    run_in_two(one_of_two_with_half_the_heads, str(tmp_path))


@pytest.mark.skipif(not distributed.is_available(), reason="torch without distributed")
def test_two_processes_by_ddp_and_fsdp2(ids, tmp_path):
    run_in_two(one_of_two, ids, str(tmp_path))
