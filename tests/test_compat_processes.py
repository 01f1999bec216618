"""Works with: several processes, by DDP, FSDP2 and FSDP1."""

from functools import partial
from pathlib import Path

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
    return [p.grad for p in edits.vector_parameters()]


def one_of_two(rank, ids, folder):
    """What each of two processes does, with one row of the batch."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
    from torch.distributed.fsdp.wrap import ModuleWrapPolicy

    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    close = partial(torch.testing.assert_close, rtol=1e-5, atol=1e-7)
    model = tiny_model("llama")
    base = logits(model, ids)
    whole = edited(model)
    wanted, gradients = logits(model, ids), [g.clone() for g in gradients_of(model, whole, ids)]

    model = tiny_model("llama")
    edits = edited(model)
    replicated = torch.nn.parallel.DistributedDataParallel(model)
    assert torch.equal(logits(replicated, ids), wanted)
    close(gradients_of(replicated, edits, ids[rank : rank + 1]), gradients)

    mesh = init_device_mesh("cpu", (2,))
    for way in ("before", "after", "whole", "flat", "flat layers", "flat, original parameters"):
        model = tiny_model("llama")
        edits = None if way == "after" else edited(model)
        if way.startswith("flat"):
            kinds = {type(model.model.layers[0])} if "layers" in way else set()
            options = {"use_orig_params": "original" in way, "auto_wrap_policy": ModuleWrapPolicy(kinds)}
            called = FullyShardedDataParallel(model, device_id=torch.device("cpu"), **options)
        else:
            for layer in model.model.layers if way != "whole" else ():
                fully_shard(layer, mesh=mesh)
            called = fully_shard(model, mesh=mesh)
        edits = edited(model) if edits is None else edits
        if way.startswith("flat"):
            with pytest.raises(HeadEditError, match="flattened by FSDP1"):
                logits(model, ids)
        assert torch.equal(logits(called, ids), wanted), way
        close(gradients_of(called, edits, ids[rank : rank + 1]), gradients)
        close(gradients_of(called, edits, ids[rank : rank + 1]), gradients)  # averaged once, not once more
        with edits.disable_adapter():
            assert torch.equal(logits(called, ids), base)
        assert torch.equal(edits.gates().offset, whole.gates().offset)
        saved = f"{folder}/{way}-{rank}"
        edits.save_pretrained(saved)
        assert torch.equal(logits(headedit.load(tiny_model("llama"), saved).model, ids), wanted)
        if way == "before":
            with pytest.raises(HeadEditError, match="its weight is sharded over processes"):
                edits.merge_adapter()
    distributed.destroy_process_group()


def one_of_two_with_parts_of_edits(rank, folder):
    """Edits that an engine has taken apart, as FSDP1 does when it is told to, or ZeRO-3."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    model = tiny_model("llama")
    edits = edited(model)
    part = next(iter(edits.module)).vectors["offset"]
    whole = part.data
    for taken, engine in ((whole.flatten()[:3], "FSDP1"), (whole[:0], "ZeRO-3")):
        part.data = taken
        if engine == "ZeRO-3":
            part.ds_id = 0
        for saves in (
            lambda: logits(model, torch.tensor([[3, 4]])),
            lambda: edits.save_pretrained(f"{folder}/out"),
            lambda: edits.save_pretrained(f"{folder}/out", hardened=True),
            lambda: edits.push_to_hub("someone/edits"),
            lambda: model.save_pretrained(f"{folder}/out"),
            lambda: torch.save(edits.module.state_dict(), f"{folder}/out"),
        ):
            with pytest.raises(HeadEditError, match=rf"offset is not whole in this process.*{engine}"):
                saves()
        assert not any(Path(folder, "out").rglob("*.safetensors"))
    distributed.destroy_process_group()


def run_in_two(work, *arguments):
    context = multiprocessing.spawn(work, arguments, nprocs=2, join=False)
    while not context.join():  # raises what a process raised
        pass
    assert [process.exitcode for process in context.processes] == [0, 0]


@pytest.mark.skipif(not distributed.is_available(), reason="torch without distributed")
def test_a_part_of_edits_is_neither_run_nor_saved_by_any_path(tmp_path):
    run_in_two(one_of_two_with_parts_of_edits, str(tmp_path))


@pytest.mark.skipif(not distributed.is_available(), reason="torch without distributed")
def test_two_processes_by_ddp_fsdp2_and_fsdp1_answer_learn_and_save_what_one_does(ids, tmp_path):
    run_in_two(one_of_two, ids, str(tmp_path))


@torch.no_grad()
def test_an_edit_acts_on_each_token_alone_so_that_a_context_can_be_split(llama):
    for edit in edited(llama).module:
        z = torch.randn(2, 8, edit.heads * edit.head_dim)
        assert torch.equal(edit(z), torch.cat([edit(z[:, :3]), edit(z[:, 3:])], dim=1))


@torch.no_grad()
def test_layers_that_are_called_by_themselves_as_the_stages_of_a_pipeline_are_edited(llama, ids):
    base = logits(llama, ids)
    edited(llama)
    wanted, inner = logits(llama, ids), llama.model
    hidden = inner.embed_tokens(ids)
    rotary = inner.rotary_emb(hidden, torch.arange(ids.shape[1])[None])
    for layer in inner.layers:
        found = layer(hidden, position_embeddings=rotary)
        hidden = found[0] if isinstance(found, tuple) else found
    stages = llama.lm_head(inner.norm(hidden))
    torch.testing.assert_close(stages, wanted, rtol=1e-6, atol=1e-6)
    assert not torch.allclose(wanted, base, atol=1e-3)
