"""Models without values: fresh edits are the identity once there are some, or a pass says what to do."""

import accelerate
import pytest
import torch
from tiny import logits, randomise, tiny_model

import headedit
from headedit import EditConfig, HeadEditError


def meta(context, attached):
    """A model and its edits, the model on the meta device; the edits are attached in the context or behind it."""
    config = tiny_model("llama").config
    kind = type(tiny_model("llama"))
    with context():
        model = kind(config).eval()
        edits = headedit.attach(model) if attached == "inside" else None
    return model, headedit.attach(model) if edits is None else edits


def on_meta():
    return torch.device("meta")


def to_empty(model, state, folder):
    model.to_empty(device="cpu")
    model.load_state_dict(state, strict=False)
    return model


def assigned(model, state, folder):
    model.load_state_dict(state, strict=False, assign=True)
    return model


def dispatched(model, state, folder):
    return accelerate.load_checkpoint_and_dispatch(model, folder, device_map={"": "cpu"})


def loaded_in_place(model, state, folder):
    accelerate.load_checkpoint_in_model(model, folder)
    return model


def buffers_of_the_base(model):
    """Gives a model the buffers that no checkpoint has, the frequencies of its positions."""
    for name, value in tiny_model("llama").named_buffers():
        holder, _, own = name.rpartition(".")
        model.get_submodule(holder)._buffers[own] = value


WAYS = [(on_meta, load) for load in (to_empty, assigned, loaded_in_place)] + [
    (accelerate.init_empty_weights, load) for load in (to_empty, assigned, loaded_in_place, dispatched)
]


@pytest.mark.parametrize("attached", ["inside", "behind"])
@pytest.mark.parametrize(("context", "load"), WAYS)
def test_edits_attached_before_the_weights_are_loaded_are_the_identity(context, load, attached, llama, ids, tmp_path):
    llama.save_pretrained(tmp_path)
    model, edits = meta(context, attached)
    assert not any(parameter.is_meta for parameter in edits.module.parameters())
    model = load(model, llama.state_dict(), tmp_path)
    buffers_of_the_base(model)
    assert torch.equal(logits(model, ids), logits(llama, ids))
    edits.set_head(0, 1, scale=0.5)
    assert not torch.equal(logits(model, ids), logits(llama, ids))


def test_edits_are_loaded_together_with_the_model_that_was_on_the_meta_device(llama, ids):
    edits = headedit.attach(llama)
    randomise(edits)
    edits.strength = 0.5
    model, _ = meta(on_meta, "inside")
    model.load_state_dict(llama.state_dict(), assign=True)
    buffers_of_the_base(model)
    assert torch.equal(logits(model, ids), logits(llama, ids))


def test_to_empty_keeps_the_values_that_edits_have(llama, ids):
    base = {name: value.clone() for name, value in llama.state_dict().items()}
    edits = headedit.attach(llama)
    randomise(edits)
    edits.strength = 0.5
    wanted = logits(llama, ids)
    llama.to_empty(device="cpu")
    llama.load_state_dict(base, strict=False)
    buffers_of_the_base(llama)
    assert torch.equal(logits(llama, ids), wanted)


@pytest.mark.parametrize("config", [{}, {"gate_init": 2.0, "gates": "shared"}, {"vectors": "scale", "gates": "none"}])
def test_edits_that_come_off_the_meta_device_are_fresh(config, llama, ids):
    base = logits(llama, ids)
    edits = headedit.attach(llama, config=EditConfig(**config))
    randomise(edits)
    edits.strength = 0.5
    llama.headedit.to("meta")
    with pytest.raises(HeadEditError, match=r"o_proj: its edit is on the meta device.*model\.headedit\.to_empty\("):
        logits(llama, ids)
    llama.headedit.to_empty(device="cpu")
    assert torch.equal(logits(llama, ids), base)
    fresh = headedit.attach(tiny_model("llama"), config=EditConfig(**config))
    for ours, theirs in zip(edits.module.parameters(), fresh.module.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    edits.set_head(0, 1, scale=0.0)
    fresh.set_head(0, 1, scale=0.0)
    fresh.strength = 0.5
    assert torch.equal(logits(llama, ids), logits(fresh.model, ids))


def test_fresh_noise_is_drawn_again(llama):
    edits = headedit.attach(llama, config=EditConfig(init_std=0.1))
    llama.headedit.to("meta").to_empty(device="cpu")
    assert all(0 < vector.std() < 0.2 for vector in edits.vector_parameters())


def test_edits_without_values_are_not_saved(llama, tmp_path):
    edits = headedit.attach(llama)
    llama.headedit.to("meta")
    with pytest.raises(HeadEditError, match=r"offset is on the meta device and has no value"):
        edits.save_pretrained(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_model_on_the_meta_device_runs_with_edits_that_have_values():
    model, _ = meta(on_meta, "behind")
    assert model(input_ids=torch.ones(1, 3, dtype=torch.long, device="meta")).logits.is_meta
