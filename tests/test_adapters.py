"""Several adapters on one model: PEFT's names, a dial, sums, and no hook or compilation for a switch."""

import warnings

import pytest
import torch
from tiny import logits, randomise, tiny_model
from torch._dynamo.testing import CompileCounter

import headedit
from headedit import EditConfig, HeadEditError
from headedit.edits.files.storage import read


def with_adapters(model, *names):
    """Edits with random values, ``default`` and the given names, and the logits are all different."""
    edits = headedit.attach(model)
    randomise(edits)
    for seed, name in enumerate(names, start=1):
        edits.add_adapter(name)
        edits.set_adapter(name)
        randomise(edits, seed)
    edits.set_adapter("default")
    return edits


def of_each(edits, ids):
    """The logits under every adapter by itself."""
    active, found = edits.active_adapter, {}
    for name in edits.adapters:
        edits.set_adapter(name)
        found[name] = logits(edits.model, ids)
    edits.set_adapter(active)
    return found


def test_a_fresh_adapter_changes_nothing_until_it_is_set_and_is_the_identity_then(llama, ids):
    base = logits(llama, ids)
    edits = with_adapters(llama)
    edited = logits(llama, ids)
    edits.add_adapter("arc")
    assert (edits.active_adapter, edits.adapters) == ("default", ["default", "arc"])
    assert torch.equal(logits(llama, ids), edited)
    edits.set_adapter("arc")
    assert edits.active_adapter == "arc"
    assert torch.equal(logits(llama, ids), base)
    edits.set_adapter("default")
    assert torch.equal(logits(llama, ids), edited)


def test_adapters_act_as_the_same_edits_alone_would(llama, ids):
    found = of_each(with_adapters(llama, "a", "b"), ids)
    for seed, name in enumerate(["default", "a", "b"]):
        alone = tiny_model("llama")
        randomise(headedit.attach(alone), seed)
        assert torch.equal(found[name], logits(alone, ids))
    assert not torch.allclose(found["a"], found["b"], atol=1e-3)


def test_only_the_active_adapter_is_trained(llama, ids):
    edits = with_adapters(llama, "a")
    edits.set_adapter("a")
    llama.train()
    llama(input_ids=ids, labels=ids).loss.backward()
    assert all(p.grad is not None for p in edits["a"].parameters())
    assert all(p.grad is None and not p.requires_grad for p in edits["default"].parameters())
    trainable, total = edits.get_nb_trainable_parameters()
    one = sum(p.numel() for p in edits["a"].parameters())
    assert (trainable, total) == (one, sum(p.numel() for p in tiny_model("llama").parameters()) + 2 * one)
    edits.set_adapter("default")
    assert all(p.requires_grad for p in edits["default"].parameters())


def test_frozen_gates_stay_frozen_when_an_adapter_is_set_again(llama):
    edits = with_adapters(llama, "a")
    edits.harden()
    edits.set_adapter("a")
    edits.set_adapter("default")
    assert edits.gate_parameters() == []
    assert all(p.requires_grad for p in edits.vector_parameters())


def test_a_copy_of_frozen_edits_is_trained_when_it_is_set(llama):
    edits = with_adapters(llama, "a")
    edits.add_adapter("copy", edits["a"])
    assert not any(p.requires_grad for p in edits["copy"].parameters())
    edits.set_adapter("copy")
    assert all(p.requires_grad for p in edits["copy"].parameters())


def test_adapters_of_different_shapes_can_be_on_one_model(llama, ids):
    edits = with_adapters(llama)
    edits.add_adapter("last", EditConfig(layers=[1], vectors="scale"))
    edits.add_adapter("mlp", EditConfig(sites=["mlp"], mlp_groups=4))
    edits.set_adapter("last")
    assert [site.layer for site in edits.sites] == [1]
    edits.set_head(1, 0, scale=0.0)
    wanted = logits(llama, ids)
    edits.set_adapter("mlp")
    assert edits.config.sites == ["mlp"]
    randomise(edits)
    edits.set_adapter("last")
    assert torch.equal(logits(llama, ids), wanted)
    alone = tiny_model("llama")
    headedit.attach(alone).set_head(1, 0, scale=0.0)
    assert torch.equal(logits(alone, ids), wanted)
    base = tiny_model("llama")
    edits.detach()
    assert torch.equal(logits(llama, ids), logits(base, ids))
    assert not any(m._forward_pre_hooks for m in llama.modules())
    assert {name for name, _ in llama.named_parameters()} == {name for name, _ in base.named_parameters()}


def test_deleting_the_active_adapter_sets_the_first_of_the_others(llama, ids):
    edits = with_adapters(llama, "a", "b")
    found = of_each(edits, ids)
    edits.delete_adapter("b")
    assert edits.adapters == ["default", "a"]
    with pytest.warns(UserWarning, match="'default' is deleted; 'a' is set in its place"):
        edits.delete_adapter("default")
    assert edits.active_adapter == "a"
    assert torch.equal(logits(llama, ids), found["a"])
    assert all(p.requires_grad for p in edits.module.parameters())
    with pytest.raises(HeadEditError, match="'a' is the only adapter; detach"):
        edits.delete_adapter("a")


@pytest.mark.parametrize("name", ["default", "a.b", "", "items", 3, "keys"])
def test_names_that_an_adapter_cannot_have_are_refused(llama, name):
    edits = with_adapters(llama)
    message = "There is an adapter 'default' already" if name == "default" else "cannot name an adapter"
    with pytest.raises(HeadEditError, match=message):
        edits.add_adapter(name)
    assert edits.adapters == ["default"]


@pytest.mark.parametrize("call", ["set_adapter", "delete_adapter", "__getitem__"])
def test_the_error_for_an_unknown_name_suggests_the_nearest(llama, call):
    edits = with_adapters(llama, "boolq")
    with pytest.raises(HeadEditError, match=r"no adapter 'bolq'.*'boolq'.* Adapters: default, boolq"):
        getattr(edits, call)("bolq")


def test_adapters_are_saved_and_loaded_by_name(llama, ids, tmp_path):
    edits = with_adapters(llama, "a")
    found = of_each(edits, ids)
    for name in edits.adapters:
        edits.set_adapter(name)
        edits.save_pretrained(tmp_path / name)
    fresh = tiny_model("llama")
    loaded = headedit.load(fresh, tmp_path / "default")
    loaded.load_adapter(tmp_path / "a", "arc")
    assert loaded.active_adapter == "default"
    assert torch.equal(logits(fresh, ids), found["default"])
    loaded.set_adapter("arc")
    assert torch.equal(logits(fresh, ids), found["a"])
    other = headedit.attach(tiny_model("llama", num_hidden_layers=3))
    with pytest.raises(HeadEditError, match="num_hidden_layers: edits 2, model 3"):
        other.load_adapter(tmp_path / "a", "arc")
    assert other.adapters == ["default"]


def test_setting_another_adapter_takes_no_new_hook(llama):
    edits = with_adapters(llama, "a", "b")
    hooks = {n: list(m._forward_pre_hooks.items()) for n, m in llama.named_modules() if m._forward_pre_hooks}
    assert sum(map(len, hooks.values())) == len(edits.sites) + 1  # one looks after them
    for name in ["a", "b", "default"] * 5:
        edits.set_adapter(name)
    with edits.route(["a", None]):
        pass
    assert hooks == {n: list(m._forward_pre_hooks.items()) for n, m in llama.named_modules() if m._forward_pre_hooks}


@pytest.mark.usefixtures("fresh_compiler")
def test_setting_another_adapter_compiles_once_per_kind_of_edit(llama, ids):
    edits = with_adapters(llama, "a", "b", "c")
    edits.add_adapter("scale", EditConfig(vectors="scale"))
    found = of_each(edits, ids)
    counter = CompileCounter()
    compiled = torch.compile(llama, backend=counter)
    counts = []

    def run():
        counts.append(counter.frame_count)
        return logits(compiled, ids)

    for name in ["default", "a", "b", "c", "default"]:
        edits.set_adapter(name)
        assert torch.allclose(run(), found[name], atol=1e-5)
    run()
    assert counts == [0, 1, 1, 1, 1, 1]
    edits.set_adapter("scale")
    assert torch.allclose(run(), found["scale"], atol=1e-5)
    edits.set_adapter("a")
    run()
    assert counts[-1] == 2  # one more, for the other kind
    for strength in [0.5, 0.25, -1.0]:
        edits.strength = strength
        wanted = logits(llama, ids)
        assert torch.allclose(run(), wanted, atol=1e-5)
    run()
    assert counts[-1] == 3  # a dial that is not 1 is a kind, its value is not
    edits.strength = 1
    for rows in [["a", None], ["b", "c"], [None, None], ["c", "a"]]:
        with edits.route(rows):
            wanted = logits(llama, ids)
            assert torch.allclose(run(), wanted, atol=1e-5)
    run()
    assert counter.frame_count <= 5  # routed rows are one more kind, all rows unedited another


def test_the_dial_multiplies_both_vectors(llama, ids):
    base = logits(llama, ids)
    edits = with_adapters(llama)
    full = logits(llama, ids)
    edits.strength = 0
    assert torch.equal(logits(llama, ids), base)
    edits.strength = 0.5
    half = logits(llama, ids)
    for edit in edits.module:
        edit.vectors["offset"].data *= 0.5
        edit.vectors["scale"].data *= 0.5
    edits.strength = 1
    assert torch.equal(logits(llama, ids), half)
    assert not torch.allclose(half, full, atol=1e-3)


def test_the_dial_is_saved_merged_and_hardened(llama, ids, tmp_path):
    edits = with_adapters(llama)
    edits.strength = 0.25
    wanted = logits(llama, ids)
    edits.save_pretrained(tmp_path / "full")
    edits.save_pretrained(tmp_path / "hardened", hardened=True)
    for folder, strength in (("full", 0.25), ("hardened", 1.0)):
        fresh = tiny_model("llama")
        loaded = headedit.load(fresh, tmp_path / folder)
        assert loaded.strength == strength
        assert torch.equal(logits(fresh, ids), wanted)
    assert read(tmp_path / "full").strength == 0.25
    edits.harden()
    assert edits.strength == 1.0
    assert torch.equal(logits(llama, ids), wanted)


@pytest.mark.parametrize("value", ["1", None, float("nan"), float("inf"), True, 1e30])
def test_a_dial_that_is_not_a_number_is_refused(llama, value):
    edits = with_adapters(llama)
    with pytest.raises(HeadEditError, match="strength: found"):
        edits.strength = value
    assert edits.strength == 1.0


def test_a_sum_of_edits_is_the_sum_of_their_effective_values(llama, ids):
    edits = with_adapters(llama, "b")
    edits["b"].strength = 3.0
    edits.add_adapter("mix", edits["default"] + 0.5 * edits["b"])
    for mixed, a, b in zip(edits["mix"], edits["default"], edits["b"], strict=True):
        for vector in ("offset", "scale"):
            value = a.effective()[vector] + 0.5 * b.effective()[vector]
            assert torch.equal(mixed.effective()[vector], value)
            assert torch.equal(mixed.is_open(vector), (value != 0).any(1))
    edits.set_adapter("mix")
    mix = logits(llama, ids)
    assert edits.gate_parameters() == []
    llama.train()
    assert torch.equal(logits(llama, ids), mix)  # gates that are fixed are not drawn


def test_differences_multiples_and_negatives_of_edits(llama, ids):
    edits = with_adapters(llama, "b")
    base, found = logits(tiny_model("llama"), ids), of_each(edits, ids)
    edits.add_adapter("none", edits["b"] - edits["b"])
    edits.add_adapter("same", edits["b"] * 1)
    edits.add_adapter("back", edits["b"] + (-edits["b"]))
    edits.add_adapter("handle", edits)
    found |= of_each(edits, ids)
    assert torch.equal(found["none"], base)
    assert torch.equal(found["back"], base)
    assert torch.equal(found["same"], found["b"])
    assert torch.equal(found["handle"], found["default"])
    assert edits["handle"].gates().offset.equal(edits["default"].gates().offset)


def test_edits_of_two_models_and_saved_edits_can_be_added(llama, ids, tmp_path):
    ours, theirs = with_adapters(llama), with_adapters(tiny_model("llama"), "b")
    theirs.set_adapter("b")
    theirs.save_pretrained(tmp_path)
    ours.add_adapter("sum", ours + theirs)
    ours.add_adapter("from_disk", ours + read(tmp_path))
    found = of_each(ours, ids)
    assert torch.equal(found["sum"], found["from_disk"])
    assert not torch.allclose(found["sum"], found["default"], atol=1e-3)


def test_edits_of_other_sites_cannot_be_added(llama):
    edits = with_adapters(llama)
    edits.add_adapter("last", EditConfig(layers=[1]))
    with pytest.raises(
        HeadEditError, match=r"1 of their sites differ, such as layers.0.*4 heads of 16 against no site"
    ):
        edits["default"] + edits["last"]
    wide = headedit.attach(tiny_model("llama", num_attention_heads=8, head_dim=8))
    with pytest.raises(HeadEditError, match=r"4 heads of 16 against 8 heads of 8"):
        edits - wide
    with pytest.raises(
        HeadEditError, match=r"of another model: at layers.0.* 8 heads of 8, this model has 4 heads of 16"
    ):
        edits.add_adapter("wide", wide)
    with pytest.raises(HeadEditError, match="Only edits can be added"):
        edits["default"] + 1
    assert edits.adapters == ["default", "last"]


def test_a_merged_model_keeps_its_adapter(llama, ids):
    edits = with_adapters(llama, "b")
    wanted = of_each(edits, ids)
    edits.merge_adapter()
    for change in (
        lambda: edits.set_adapter("b"),
        lambda: edits.delete_adapter("b"),
        lambda: setattr(edits, "strength", 0.5),
        lambda: edits.route(["b", None]).__enter__(),
    ):
        with pytest.raises(HeadEditError, match=r"While the edits are merged, .* call unmerge_adapter\(\) first"):
            change()
    edits.add_adapter("c")
    assert torch.allclose(logits(llama, ids), wanted["default"], atol=1e-5)
    edits.unmerge_adapter()
    assert torch.equal(of_each(edits, ids)["b"], wanted["b"])


def test_the_repr_names_the_active_adapter_and_the_dial(llama):
    edits = with_adapters(llama)
    assert "of default" not in repr(edits)
    edits.add_adapter("arc")
    edits.strength = 0.5
    assert "strength 0.5; 'default' of default, arc" in repr(edits)


def test_adding_and_deleting_an_adapter_gives_no_warning(llama):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        edits = with_adapters(llama, "a")
        edits.delete_adapter("a")
    assert edits.adapters == ["default"]
