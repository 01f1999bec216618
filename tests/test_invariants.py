"""The invariants 1 to 5 of the design on every model type that has a spec: exact where exactness is promised."""

import gc

import pytest
import torch
from tiny import FACTS, logits, randomise, tiny_model
from torch import nn

import headedit
from headedit import HeadEditError

TYPES = sorted(FACTS)


def snapshot(model: nn.Module) -> dict[str, object]:
    """All that attaching could leave behind: hooks, attributes, parameters and what they require."""
    return {
        "hooks": {n: (list(m._forward_pre_hooks.values()), list(m._forward_hooks)) for n, m in model.named_modules()},
        "attributes": {n: sorted(vars(m)) for n, m in model.named_modules()},
        "children": {n: list(m._modules) for n, m in model.named_modules()},
        "parameters": {n: (id(p), p.data_ptr(), p.requires_grad) for n, p in model.named_parameters()},
        "state": list(model.state_dict()),
    }


def count_tensors() -> int:
    gc.collect()
    return sum(issubclass(type(o), torch.Tensor) for o in gc.get_objects())


@pytest.mark.parametrize("model_type", TYPES)
def test_attach_disable_and_detach_are_exact(model_type, ids):
    model = tiny_model(model_type)
    frozen = next(model.parameters())
    frozen.requires_grad_(False)
    before, base = snapshot(model), logits(model, ids)
    weights = {name: value.clone() for name, value in model.state_dict().items()}

    edits = headedit.attach(model)
    assert torch.equal(logits(model, ids), base)
    assert {n for n, p in model.named_parameters() if p.requires_grad} == {
        n for n, _ in model.named_parameters() if n.startswith("headedit.")
    }
    randomise(edits)
    assert not torch.allclose(logits(model, ids), base, atol=1e-4)
    with edits.disable_adapter() as same:
        assert same is model
        assert torch.equal(logits(model, ids), base)
    assert not torch.allclose(logits(model, ids), base, atol=1e-4)

    assert edits.detach() is model
    assert not edits.attached
    assert snapshot(model) == before
    assert torch.equal(logits(model, ids), base)
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("eval_gate", ["clip", "expectation"])
def test_a_fresh_edit_is_the_identity_with_either_estimator_and_in_training(llama, ids, eval_gate):
    base = logits(llama, ids)
    headedit.attach(llama, config=headedit.EditConfig(eval_gate=eval_gate))
    assert torch.equal(logits(llama, ids), base)
    assert torch.equal(logits(llama.train(), ids), base)


def test_the_papers_noise_is_there_when_asked_for(llama, ids):
    base = logits(llama, ids)
    edits = headedit.attach(llama, config=headedit.EditConfig(init_std=1e-3))
    spread = torch.cat([p.flatten() for p in edits.vector_parameters()]).std()
    assert spread.item() == pytest.approx(1e-3, rel=0.2)
    assert not torch.equal(logits(llama, ids), base)
    assert torch.allclose(logits(llama, ids), base, atol=1e-2)


def test_attach_draws_no_random_number(llama):
    state = torch.get_rng_state()
    headedit.attach(llama)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_thousand_attachments_leave_nothing(llama, ids):
    before = snapshot(llama)
    headedit.attach(llama).detach()
    tensors = count_tensors()
    for _ in range(1000):
        headedit.attach(llama).detach()
    assert count_tensors() == tensors
    assert snapshot(llama) == before


def test_disabling_ends_with_an_error_too_and_nests(llama, ids):
    base = logits(llama, ids)
    edits = headedit.attach(llama)
    randomise(edits)
    edited = logits(llama, ids)
    try:
        with edits.disable_adapter():
            with edits.disable_adapter():
                pass
            assert torch.equal(logits(llama, ids), base)
            raise KeyboardInterrupt
    except KeyboardInterrupt:
        pass
    assert torch.equal(logits(llama, ids), edited)


def test_a_second_attachment_is_refused_and_changes_nothing(llama, ids):
    edits = headedit.attach(llama)
    before = snapshot(llama)
    with pytest.raises(HeadEditError, match=r"has edits attached already; headedit\.handle"):
        headedit.attach(llama)
    assert snapshot(llama) == before
    edits.detach()
    assert headedit.attach(llama).attached


def test_detaching_twice_does_nothing_and_spares_a_later_attachment(llama):
    first = headedit.attach(llama)
    first.detach()
    second = headedit.attach(llama)
    first.detach()
    assert second.attached
    assert sum(len(m._forward_pre_hooks) for m in llama.modules()) == 3  # a site each, and one that looks after them


def test_hooks_of_others_survive_and_fire_in_their_order(llama, ids):
    seen: list[str] = []
    projection = llama.model.layers[0].self_attn.o_proj
    projection.register_forward_pre_hook(lambda m, args: seen.append("before"))
    edits = headedit.attach(llama)
    late = projection.register_forward_pre_hook(lambda m, args: seen.append("after"))
    projection.register_forward_hook(lambda m, args, out: seen.append("output"))
    logits(llama, ids)
    assert seen == ["before", "after", "output"]
    edits.detach()
    seen.clear()
    logits(llama, ids)
    assert seen == ["before", "after", "output"]
    late.remove()
    assert len(projection._forward_pre_hooks) == 1


def test_a_users_hook_sees_edited_heads_behind_ours_and_plain_ones_before(llama, ids):
    plain, edited = [], []
    projection = llama.model.layers[1].self_attn.o_proj
    projection.register_forward_pre_hook(lambda m, args: plain.append(args[0].clone()))
    edits = headedit.attach(llama)
    projection.register_forward_pre_hook(lambda m, args: edited.append(args[0].clone()))
    edits.set_head(1, 2, scale=0.0)
    logits(llama, ids)
    view = (*plain[0].shape[:-1], 4, 16)
    assert (edited[0].view(view)[..., 2, :] == 0).all()
    assert torch.equal(edited[0].view(view)[..., [0, 1, 3], :], plain[0].view(view)[..., [0, 1, 3], :])


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "gemma2", "opt"])
def test_a_slot_of_a_site_is_the_head_of_its_number(model_type, ids):
    """Zeroing the values of one head inside the attention is ablating it by an edit, and no other head."""
    changes = {} if model_type in ("gpt2", "opt") else {"num_key_value_heads": 4}
    model = tiny_model(model_type, **changes)
    edits = headedit.attach(model)
    site = edits.sites[1]
    attention = model.get_submodule(site.path.rpartition(".")[0])
    assert site.heads > 1
    for head in range(site.heads):
        edits.set_head(1, head, scale=0.0)
        by_edit = logits(model, ids)
        edits.set_head(1, head)
        rows = slice(head * site.head_dim, (head + 1) * site.head_dim)

        def silence(module, args, out, rows=rows):
            silenced = out.clone()
            silenced[..., -site.width :][..., rows] = 0  # a fused projection ends with the values
            return silenced

        values = attention.c_attn if model_type == "gpt2" else attention.v_proj
        hook = values.register_forward_hook(silence)
        by_values = logits(model, ids)
        hook.remove()
        assert torch.allclose(by_edit, by_values, atol=1e-5)
        assert not torch.allclose(by_edit, logits(model, ids), atol=1e-4)


@pytest.mark.parametrize("model_type", TYPES)
def test_cached_decoding_equals_the_full_forward(model_type, ids):
    model = tiny_model(model_type)
    randomise(headedit.attach(model))
    with torch.no_grad():
        full = model(input_ids=ids).logits
        first = model(input_ids=ids[:, :4], use_cache=True)
        steps, cache = [first.logits], first.past_key_values
        for t in range(4, ids.shape[1]):
            out = model(input_ids=ids[:, t : t + 1], past_key_values=cache, use_cache=True)
            steps, cache = [*steps, out.logits], out.past_key_values
    assert torch.allclose(torch.cat(steps, dim=1), full, atol=2e-5)
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    cached = model.generate(ids, use_cache=True, **options)
    assert torch.equal(cached, model.generate(ids, use_cache=False, **options))


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "gemma2"])
def test_gradients_are_the_same_with_and_without_checkpointing(model_type, ids):
    """Two forwards before the backward, so that each is recomputed with the gates it was drawn with."""
    model = tiny_model(model_type, attn_pdrop=0.0, resid_pdrop=0.0, embd_pdrop=0.0).train()
    edits = headedit.attach(model)
    randomise(edits)

    def gradients():
        torch.manual_seed(3)
        losses = [model(input_ids=batch, labels=batch).loss for batch in (ids, ids.flip(0))]
        return torch.autograd.grad(sum(losses), list(edits.module.parameters()))

    with torch.no_grad():
        for gate in edits.gate_parameters():
            gate.zero_()  # where samples are neither 0 nor 1 most often
    plain = gradients()
    assert sum(bool((g != 0).any()) for g in plain) >= 6  # of 8: a sample may close all gates of a site
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    for a, b in zip(plain, gradients(), strict=True):
        assert torch.equal(a, b)
