"""What each process of a test of tensor parallelism does: a model in one process, and the same one split over all."""

import os
import socket
from pathlib import Path

import torch
import transformers
from tiny import randomise, tiny_model
from torch import distributed, multiprocessing
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from transformers import AutoModelForCausalLM, TrainingArguments

import headedit
from headedit.data.batches import PadRight
from headedit.specs.probe import prove_sites

HEADS = {"num_key_value_heads": 4}
"""So that four processes have a head of each kind; with two, two key-value heads serve two query heads each."""

ATTENTION = {
    "model.layers.*.self_attn.q_proj": ColwiseParallel(),
    "model.layers.*.self_attn.k_proj": ColwiseParallel(),
    "model.layers.*.self_attn.v_proj": ColwiseParallel(),
    "model.layers.*.self_attn.o_proj": RowwiseParallel(),
}
LENGTHS = (1, 2, 3, 8, 40)
IDS = torch.randint(5, 120, (2, 40), generator=torch.Generator().manual_seed(3))
ROWS = [
    {"input_ids": row, "labels": [-100, *row[1:]]}
    for row in ([3 + i + 7 * j % 90 for j in range(6 + i % 3)] for i in range(12))
]
CLOSE = 1e-6
"""Largest difference, relative to the largest value: processes add up in another order."""


def in_processes(world, work, folder, *arguments):
    """Runs ``work(rank, folder, *arguments)`` in some gloo processes; raises what one of them raised."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    multiprocessing.spawn(_one, (world, port, work, Path(folder), *arguments), nprocs=world)


def _one(rank, world, port, work, folder, *arguments):
    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    place = {"RANK": rank, "WORLD_SIZE": world, "LOCAL_RANK": rank, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in place.items()})
    distributed.init_process_group("gloo")
    work(rank, folder, *arguments)
    distributed.destroy_process_group()


def both(model_type, rank, folder, **changes):
    """A tiny model in this process alone, and the same one split over all."""
    plain = tiny_model(model_type, **changes)
    if rank == 0:
        plain.save_pretrained(folder / model_type)
    distributed.barrier()
    split = AutoModelForCausalLM.from_pretrained(folder / model_type, tp_plan="auto", dtype=torch.float32).eval()
    return plain, split


def edited(models, **config):
    """Handles of the same edits on all models."""
    handles = [headedit.attach(model, config=headedit.EditConfig(**config)) for model in models]
    for edits in handles:
        randomise(edits)
    return handles


def off(found, wanted):
    """The largest difference, relative to the largest value."""
    return float((found - wanted).detach().abs().max() / wanted.abs().max())


def logits(model, ids, **kwargs):
    with torch.no_grad():
        return model(input_ids=ids, **kwargs).logits


def gradients(model, edits):
    """The gradients of loss and penalty, as one tensor."""
    model.zero_grad()
    (model(input_ids=IDS, labels=IDS).loss + 0.01 * edits.penalty()).backward()
    return flat(p.grad for p in edits.module.parameters())


def flat(tensors):
    return torch.cat([tensor.detach().flatten() for tensor in tensors])


def same_in_all(tensor):
    """Whether a tensor is the same to the bit in every process."""
    found = [torch.empty_like(tensor) for _ in range(distributed.get_world_size())]
    distributed.all_gather(found, tensor)
    return all(torch.equal(tensor, other) for other in found)


def give_what_one_gives(rank, folder, model_types, changes):
    for model_type in model_types:
        plain, split = both(model_type, rank, folder, **changes)
        for config in ({}, {"sites": ["attention", "mlp"], "mlp_groups": 6, "gates": "shared"}):
            one, all_ = edited((plain, split), **config)
            for length in LENGTHS:
                found, wanted = logits(split, IDS[:, :length]), logits(plain, IDS[:, :length])
                assert off(found, wanted) < CLOSE, (model_type, config, length)
            found, wanted = gradients(split, all_), gradients(plain, one)
            assert same_in_all(found), (model_type, config)
            assert off(found, wanted) < CLOSE, (model_type, config)
            assert found.abs().max() > 1e-3
            if not config:
                answers = (m.generate(IDS[:, :5], max_new_tokens=8, do_sample=False) for m in (plain, split))
                assert torch.equal(*answers), model_type
            one.detach()
            all_.detach()


def are_used_in_every_way(rank, folder):
    plain, split = both("llama", rank, folder)
    base = logits(split, IDS)
    one, all_ = edited((plain, split))
    _draw_the_gates_of_the_first_process(rank, plain, split, one, all_)
    _checkpoint_layers(plain, split, one, all_)
    with all_.disable_adapter():
        assert torch.equal(logits(split, IDS), base)
    all_.save_pretrained(folder / "saved")  # every process writes the same bytes
    distributed.barrier()
    assert off(headedit.load(tiny_model("llama"), folder / "saved").model(IDS).logits, logits(plain, IDS)) < CLOSE
    for edits in (one, all_):
        edits.load_adapter(folder / "saved", "other")
        edits.add_adapter("fresh", {"init_std": 0.1, "positions": "last_prompt"})
        edits["other"].strength = 0.5
    for names in (["other", None], ["default", "other"]):
        with one.route(names), all_.route(names):
            assert off(logits(split, IDS), logits(plain, IDS)) < CLOSE
    assert same_in_all(flat(all_["fresh"].parameters()))  # though each process would draw others
    if rank == 0:
        assert flat(all_["fresh"].parameters()).abs().max() > 0.1
    for edits in (one, all_):
        edits.add_adapter("end", {"positions": "last_prompt"})
        edits.set_adapter("end")
        randomise(edits, seed=1)
    assert off(logits(split, IDS, use_cache=True), logits(plain, IDS, use_cache=True)) < CLOSE
    assert off(logits(split, IDS, use_cache=True), base) > 1e-3
    all_.set_adapter("default")
    for refused in (all_.merge_adapter, all_.merge_and_unload):
        with _raises("sharded over processes"):
            refused()
    assert off(logits(split, IDS), base) > 1e-3
    all_.detach()
    assert torch.equal(logits(split, IDS), base)


def _draw_the_gates_of_the_first_process(rank, plain, split, one, all_):
    found = []
    for model, edits in ((plain, one), (split, all_)):
        model.train()
        torch.manual_seed(0 if model is plain else rank)
        with edits.head_dropout(0.5):
            found.append((logits(model, IDS), gradients(model, edits)))
        model.eval()
    assert off(found[1][0], found[0][0]) < CLOSE
    assert off(found[1][1], found[0][1]) < CLOSE
    assert same_in_all(found[1][1])


def _checkpoint_layers(plain, split, one, all_):
    wanted = gradients(plain, one)
    split.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    for mode in (True, False):
        split.train(mode)
        with all_.deterministic_gates():
            assert off(gradients(split, all_), wanted) < CLOSE
    split.gradient_checkpointing_disable()
    split.eval()


class _raises:
    def __init__(self, words):
        self.words = words

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        assert isinstance(error, headedit.HeadEditError), "nothing was refused"
        assert self.words in str(error), error
        return True


def learn(model, output):
    """Edits that ``fit`` has trained on a model."""
    edits = headedit.attach(model)
    options = {"epochs": 2, "search_epochs": 2, "min_steps": 1, "batch_size": 4, "progress": False}
    headedit.fit(edits, ROWS[:8], ROWS[8:], output_dir=output, arguments={"use_cpu": True}, **options)
    return edits


def learn_what_one_learns(rank, folder, wanted):
    plain, split = both("llama", rank, folder)
    edits = learn(split, folder / "all")
    found = flat(edits.module.parameters())
    assert same_in_all(found)
    assert off(found, wanted) < CLOSE
    saved = headedit.load(plain, folder / "all")  # one process has written it
    assert torch.equal(flat(saved.module.parameters()), flat(edits.module.parameters()))
    _resume(edits, folder)
    saved.detach()
    edits.detach()
    _steer(plain, split)


def _resume(edits, folder):
    start, ends = edits.snapshot(), []
    for steps, checkpoint in ((4, None), (4, "checkpoint-2")):
        edits.restore(start)
        arguments = TrainingArguments(
            str(folder / "trainer"),
            max_steps=steps,
            save_steps=2,
            save_strategy="steps",
            per_device_train_batch_size=4,
            learning_rate=0.01,
            use_cpu=True,
            report_to=[],
            disable_tqdm=True,
            remove_unused_columns=False,
        )
        trainer = headedit.HeadEditTrainer(edits, args=arguments, train_dataset=ROWS, data_collator=PadRight(0))
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(folder / "trainer" / checkpoint))
        ends.append(flat(edits.module.parameters()))
    assert torch.equal(*ends)
    assert not torch.equal(ends[0], flat(start))
    assert same_in_all(ends[1])


def _steer(plain, split):
    odd, even = ([{"input_ids": row["input_ids"]} for row in ROWS[first::2]] for first in (0, 1))
    found = []
    for model in (plain, split):
        edits = headedit.attach(model, config=headedit.EditConfig(vectors="offset"))
        steering = headedit.steer(edits, odd, even, method="mean_difference", rank_by="effect", heads=2, progress=False)
        found.append((steering.chosen, flat(edits.module.parameters())))
    assert found[0][0] == found[1][0]
    assert off(found[1][1], found[0][1]) < CLOSE
    for refused in (lambda: headedit.attribute(edits, ROWS), lambda: prove_sites(split, edits.sites)):
        with _raises("sharded over processes"):
            refused()


QUERIES = """
model_types: [llama]
sites:
  attention:
    path: layers.{layer}.self_attn.q_proj
    heads: 4
"""


def take_inputs_of_every_kind(rank, folder):
    plain, split = both("llama", rank, folder)
    spec = folder / f"queries{rank}.yaml"
    spec.write_text(QUERIES)
    one, all_ = (headedit.attach(model, spec) for model in (plain, split))
    _compare(one, all_)  # a column-wise projection takes the whole input
    with _raises("sharded over processes, it is in a way that does not say which heads"):
        all_.module.site_edits[0](torch.zeros(1, 3, 16))
    one.detach()
    mesh = init_device_mesh("cpu", (distributed.get_world_size(),))
    first, later = tiny_model("llama"), tiny_model("llama")
    before = headedit.attach(first)
    for model in (first, later):
        parallelize_module(model, mesh, ATTENTION)
    _compare(headedit.attach(plain), before)
    headedit.handle(plain).detach()
    _compare(headedit.attach(plain), headedit.attach(later))  # whose projection is given a DTensor
    with _raises("Proving which head a slot is needs all heads in one process"):
        prove_sites(later, headedit.handle(later).sites)
    only = tiny_model("llama")
    parallelize_module(only, mesh, {"model.layers.*.self_attn.o_proj": RowwiseParallel()})  # of what is not split
    headedit.attach(only)
    with _raises("o_proj was given (2, 40, 128), split over processes"):
        logits(only, IDS)


def _compare(one, all_):
    for edits in (one, all_):
        randomise(edits)
    assert off(logits(all_.model, IDS), logits(one.model, IDS)) < CLOSE
    found, wanted = gradients(all_.model, all_), gradients(one.model, one)
    assert same_in_all(found)
    assert off(found, wanted) < CLOSE
