"""What a training step takes in each of two processes that share a model: ``processes_planned.py OUTPUT``.

For tensor parallelism and FSDP2, and for model types that keep their heads in different ways. In place of edits, which
are small, the input of each output projection gets the edit's formula with vectors for the heads that it has.
"""

import json
import sys
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from tiny import tiny_model
from torch.distributed.fsdp import fully_shard
from transformers import AutoModelForCausalLM

from headedit.bench.cost.memory import peak_of_tensors
from headedit.edits.affine import apply_affine
from headedit.specs import find_sites, find_spec
from headedit.training.loop.token_loss import token_loss
from headedit.training.memory_plan import Setup

SIZES = {
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 6,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "vocab_size": 500,
}
TYPES = ("llama", "gpt_neox", "mixtral")
SETUP = Setup(batch_size=3, tokens=48, dtype="float32", device="cpu", devices=2)


def local(tensor):
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def edit(model):
    """Puts vectors for its own heads in front of each projection."""

    def hook(vectors, module, args):
        z = args[0]
        if not vectors:
            vectors += [torch.full(z.shape[-1:], value, requires_grad=True) for value in (1.0, 0.0)]
        return (apply_affine(z, *vectors), *args[1:])

    for site in find_sites(model, find_spec(model)):
        site.module.register_forward_pre_hook(partial(hook, []))


def measured(model):
    edit(model.train().requires_grad_(False))
    ids = torch.randint(3, 100, (SETUP.batch_size, SETUP.tokens), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[0, -3:] = 0
    saved = {}

    def forward():
        return token_loss(model(input_ids=ids, attention_mask=mask, use_cache=False), ids)

    def save(tensor):
        storage = local(tensor.detach()).untyped_storage()
        saved[storage._cdata] = storage
        return tensor

    forward().backward()
    with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
        loss = forward()
    kept = {local(p.detach()).untyped_storage()._cdata for p in (*model.parameters(), *model.buffers())}
    activations = sum(storage.nbytes() for key, storage in saved.items() if key not in kept)
    loss.backward()
    saved.clear()
    del loss
    tensors = {id(t): local(t.detach()) for t in (*model.parameters(), *model.buffers())}
    return {
        "base": sum(t.numel() * t.element_size() for t in tensors.values()),
        "saved": activations,
        "step": peak_of_tensors(lambda: forward().backward(), torch.device("cpu")),
    }


def shared(model_type, split, folder):
    model = tiny_model(model_type, **SIZES)
    if split == "tensor_parallel":
        if dist.get_rank() == 0:
            model.save_pretrained(folder / model_type)
        dist.barrier()
        return AutoModelForCausalLM.from_pretrained(folder / model_type, tp_plan="auto")
    from headedit.hf.layers import stack_of

    stack = model.get_submodule(stack_of(model, find_sites(model, find_spec(model))[0].path))
    for layer in stack:
        fully_shard(layer)
    fully_shard(model)
    return model


if __name__ == "__main__":
    torch.set_num_threads(1)
    output = Path(sys.argv[1])
    dist.init_process_group("gloo")
    found = {}
    for split in ("tensor_parallel", "fsdp"):
        for model_type in TYPES:
            found[f"{split} {model_type}"] = measured(shared(model_type, split, output))
    (output / f"{dist.get_rank()}.json").write_text(json.dumps(found))
    dist.destroy_process_group()
