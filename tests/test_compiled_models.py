"""Models compiled side by side in one process: each runs its own graph, with its own edits."""

import pytest
import torch
from tiny import logits, randomise, tiny_model

import headedit
from headedit import EditConfig


@pytest.mark.usefixtures("fresh_compiler")
def test_an_edited_model_that_is_compiled_after_its_base_runs_with_its_edits(ids):
    base, edited = tiny_model("llama").requires_grad_(False), tiny_model("llama").requires_grad_(False)
    edits = headedit.attach(edited)
    randomise(edits)
    wanted = [logits(base, ids), logits(edited, ids)]
    assert not torch.allclose(*wanted, atol=1e-2)
    compiled = [torch.compile(model, backend="eager") for model in (base, edited)]
    for which in (0, 1, 0, 1, 1, 0):
        torch.testing.assert_close(logits(compiled[which], ids), wanted[which])


@pytest.mark.usefixtures("fresh_compiler")
def test_a_model_that_is_compiled_again_after_detaching_is_the_base(ids):
    model = tiny_model("llama").requires_grad_(False)
    base = logits(model, ids)
    edits = headedit.attach(model)
    randomise(edits)
    compiled = torch.compile(model, backend="eager")
    assert not torch.allclose(logits(compiled, ids), base, atol=1e-2)
    edits.detach()
    torch.testing.assert_close(logits(compiled, ids), base)


def in_place(module):
    module.compile(backend="eager")


def by_its_forward(module):
    module.forward = torch.compile(module.forward, backend="eager")


def wrapped(parent, name):
    setattr(parent, name, torch.compile(getattr(parent, name), backend="eager"))


def each_layer_wrapped(model):
    for name in list(model.model.layers._modules):
        wrapped(model.model.layers, name)


REGIONS = {
    "layers in place": lambda m: [in_place(layer) for layer in m.model.layers],
    "layers by their forward": lambda m: [by_its_forward(layer) for layer in m.model.layers],
    "decoder by its forward": lambda m: by_its_forward(m.model),
    "projections in place": lambda m: [in_place(layer.self_attn.o_proj) for layer in m.model.layers],
    "one attention in place": lambda m: in_place(m.model.layers[1].self_attn),
    "layers in a wrapper": each_layer_wrapped,
    "attention and MLP in wrappers": lambda m: [wrapped(x, n) for x in m.model.layers for n in ("self_attn", "mlp")],
    "projections in wrappers": lambda m: [wrapped(layer.self_attn, "o_proj") for layer in m.model.layers],
}


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("attached", ["before", "after a pass"])
@pytest.mark.parametrize("region", REGIONS)
def test_parts_of_a_model_that_are_compiled_are_edited(region, attached, ids):
    """As accelerate compiles one layer for all ("regional compilation")."""
    config = EditConfig(sites=["attention", "mlp"], mlp_groups=4)
    reference = tiny_model("llama")
    wanted = headedit.attach(reference, config)
    randomise(wanted)
    expected = logits(reference, ids)
    model = tiny_model("llama")
    if attached == "before":
        edits = headedit.attach(model, config)
        REGIONS[region](model)
    else:
        REGIONS[region](model)
        logits(model, ids)
        edits = headedit.attach(model, config)
    randomise(edits)
    for _ in range(2):
        assert torch.equal(logits(model, ids), expected)
    assert [site.name for site in edits.sites] == [site.name for site in wanted.sites]
    with edits.disable_adapter():
        assert torch.equal(logits(model, ids), logits(tiny_model("llama"), ids))
    model.train()
    model(input_ids=ids).logits.square().mean().backward()
    for site, edit in edits.module.pairs():
        assert any(p.grad is not None and p.grad.abs().max() > 0 for p in edit.parameters()), site.name
