"""Works with: PEFT's adapters on the same model, put on before the edits or after them. Invariant 2 of the design."""

import pytest
import torch
from third_party import edited
from tiny import logits, tiny_model

import headedit

PLACES = [["q_proj", "v_proj"], ["o_proj"]]


def with_lora(model, targets):
    """A PeftModel around a model; its adapter matters, and is the same at every call."""
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(target_modules=targets, r=2, init_lora_weights=False)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return peft.get_peft_model(model, config).eval()


def trained(model, ids):
    """Names of the parameters that a backward pass gives a gradient other than zero."""
    model.zero_grad()
    model(input_ids=ids, labels=ids).loss.backward()
    return {name for name, p in model.named_parameters() if p.grad is not None and (p.grad != 0).any()}


def test_lora_put_on_before_sees_edited_heads(llama, ids):
    model = with_lora(llama, ["o_proj"])
    base = logits(model, ids)
    with model.disable_adapter():
        without = logits(model, ids)
    edits = headedit.attach(model)
    assert torch.equal(logits(model, ids), base)
    seen = []
    wrapper = edits.sites[0].module
    wrapper.lora_A["default"].register_forward_pre_hook(lambda m, args: seen.append(args[0].clone()))
    edits.set_head(0, 1, scale=0.0)
    logits(model, ids)
    assert (seen[0].view(2, 7, 4, 16)[..., 1, :] == 0).all()
    edits.detach()
    assert torch.equal(logits(model, ids), base)
    with model.disable_adapter():
        assert torch.equal(logits(model, ids), without)
    assert any(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("targets", PLACES, ids="-".join)
def test_lora_put_on_after_is_the_same_as_before(targets, ids):
    before, after = with_lora(tiny_model("llama"), targets), tiny_model("llama")
    edited(before)
    edits = edited(after)
    after = with_lora(after, targets)
    assert torch.equal(logits(after, ids), logits(before, ids))
    with edits.disable_adapter():
        assert torch.equal(logits(after, ids), logits(with_lora(tiny_model("llama"), targets), ids))
        with after.disable_adapter():
            assert torch.equal(logits(after, ids), logits(tiny_model("llama"), ids))
    edits.detach()
    assert torch.equal(logits(after, ids), logits(with_lora(tiny_model("llama"), targets), ids))


@pytest.mark.parametrize("order", ["before", "after"])
def test_edits_and_lora_are_trained_together(order, ids):
    model = tiny_model("llama")
    if order == "before":
        model = with_lora(model, ["q_proj"])
        edits = edited(model)
        assert all("headedit" in name for name in trained(model, ids))  # attach froze the rest
        for name, parameter in model.named_parameters():
            parameter.requires_grad_("lora" in name or "headedit" in name)
    else:
        edits = edited(model)
        model = with_lora(model, ["q_proj"])
        assert not any("headedit" in name for name in trained(model, ids))  # get_peft_model froze the rest
        edits.module.requires_grad_(True)
    names = trained(model, ids)
    assert {name for name in names if "lora" not in name and "headedit" not in name} == set()
    assert sum("lora" in name for name in names) == 4
    assert all((p.grad != 0).any() for p in edits.vector_parameters())


@pytest.mark.parametrize("targets", PLACES, ids="-".join)
@pytest.mark.parametrize("order", ["before", "after"])
def test_edits_stay_when_lora_is_merged_or_unloaded(order, targets, ids):
    for leave, tolerance in (("unload", 0.0), ("merge_and_unload", 1e-5)):
        model = tiny_model("llama")
        if order == "before":
            model = with_lora(model, targets)
            edits = edited(model)
        else:
            edits = edited(model)
            model = with_lora(model, targets)
        wanted = logits(model, ids)
        if leave == "unload":
            with model.disable_adapter():
                wanted = logits(model, ids)
        plain = getattr(model, leave)()
        assert torch.allclose(logits(plain, ids), wanted, rtol=0, atol=tolerance)
        edits.detach()
        assert not any(module._forward_pre_hooks for module in plain.modules())
