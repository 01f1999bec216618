"""Names that the handle shares with PEFT: the same parameters, and what PEFT's documentation says of them."""

import inspect

import pytest
import torch
from peft import PeftModel
from peft.peft_model import TunerModelStatus
from peft.tuners.lora import LoraModel
from tiny import logits, randomise, tiny_model

import headedit
from headedit import HeadEditError, HeadEdits

SHARED = {
    PeftModel: [
        "add_adapter",
        "delete_adapter",
        "disable_adapter",
        "get_base_model",
        "get_model_status",
        "get_nb_trainable_parameters",
        "load_adapter",
        "print_trainable_parameters",
        "push_to_hub",
        "save_pretrained",
        "set_adapter",
    ],
    LoraModel: [
        "add_weighted_adapter",
        "disable_adapter_layers",
        "enable_adapter_layers",
        "merge_adapter",
        "merge_and_unload",
        "unload",
        "unmerge_adapter",
    ],
}
OURS = {  # an edit is described by an EditConfig, or copied from edits; saved edits can be hardened
    "load_adapter": {"revision"},  # one of PEFT's keyword arguments
    "add_adapter": {"config"},
    "push_to_hub": {"hardened", "card", "metrics"},
    "save_pretrained": {"hardened", "card", "metrics"},
}


def parameters(function):
    return {name: p for name, p in inspect.signature(function).parameters.items() if name != "self"}


@pytest.mark.parametrize(("cls", "name"), [(cls, name) for cls, names in SHARED.items() for name in names])
def test_a_method_with_a_name_of_peft_has_its_parameters(cls, name):
    ours, theirs = parameters(getattr(HeadEdits, name)), parameters(getattr(cls, name))
    assert set(ours) - set(theirs) == OURS.get(name, set())
    shared = [parameter for parameter in ours if parameter in theirs]
    assert [p for p in theirs if p in shared and ours[p].kind is not inspect.Parameter.KEYWORD_ONLY] == [
        p for p in shared if ours[p].kind is not inspect.Parameter.KEYWORD_ONLY
    ]
    for parameter in shared:
        required = theirs[parameter].default is inspect.Parameter.empty
        assert (ours[parameter].default is inspect.Parameter.empty) == required, parameter
        if parameter != "combination_type":  # ours is linear, PEFT's default works on matrices of low rank
            assert ours[parameter].default == theirs[parameter].default, parameter
    positional = [p for p in ours if ours[p].kind is not inspect.Parameter.KEYWORD_ONLY and p in theirs]
    assert positional == list(theirs)[: len(positional)], "positional arguments mean something else than in PEFT"


@pytest.mark.parametrize("name", ["active_adapter", "active_adapters"])
def test_an_attribute_of_peft_is_one_of_the_handle(name, llama):
    import peft

    edits = headedit.attach(llama)
    other = peft.get_peft_model(tiny_model("llama"), peft.LoraConfig(target_modules=["q_proj"]))
    assert getattr(edits, name) == getattr(other, name)  # both call the first one "default"


def test_the_names_of_peft_for_merging_are_keywords():
    for name in ("merge_adapter", "merge_and_unload"):
        found = parameters(getattr(HeadEdits, name))
        assert found["safe_merge"].kind is inspect.Parameter.KEYWORD_ONLY
        assert "adapter_names" in found


@pytest.fixture
def edits(llama):
    edits = headedit.attach(llama)
    randomise(edits)
    edits.add_adapter(adapter_name="b")
    edits.set_adapter(adapter_name="b")
    randomise(edits, 1)
    edits.set_adapter("default")
    return edits


def test_the_status_has_the_fields_of_pefts_and_follows_the_handle(edits):
    from dataclasses import asdict, fields

    status = asdict(edits.get_model_status())
    there = {field.name for field in fields(TunerModelStatus)} - {"peft_types", "quantization_backend"}
    assert set(status) == there
    assert status == {
        "base_model_type": "LlamaForCausalLM",
        "adapter_model_type": "HeadEdits",
        "trainable_params": 272,
        "total_params": sum(p.numel() for p in edits.model.parameters()),
        "num_adapter_layers": 2,
        "enabled": True,
        "active_adapters": ["default"],
        "merged_adapters": [],
        "requires_grad": {"default": True, "b": False},
        "available_adapters": ["default", "b"],
        "devices": {"default": ["cpu"], "b": ["cpu"]},
    }
    edits.set_adapter("b", inference_mode=True)
    status = edits.get_model_status()
    assert (status.active_adapters, status.requires_grad) == (["b"], {"default": False, "b": False})
    edits.merge_adapter(["default"])
    assert edits.get_model_status().merged_adapters == edits.merged_adapters == ["default"]
    edits.unmerge_adapter()
    edits.disable_adapter_layers()
    assert not edits.get_model_status().enabled
    assert edits.get_base_model() is edits.model


def test_layers_that_are_disabled_stay_so_until_they_are_enabled(edits, ids):
    base, edited = logits(tiny_model("llama"), ids), logits(edits.model, ids)
    edits.disable_adapter_layers()
    assert torch.equal(logits(edits.model, ids), base)
    with edits.disable_adapter():
        pass
    edits.set_adapter("b")
    edits.set_adapter("default")
    assert torch.equal(logits(edits.model, ids), base)
    edits.enable_adapter_layers()
    assert torch.equal(logits(edits.model, ids), edited)
    edits.merge_adapter()
    with pytest.raises(HeadEditError, match=r"While the edits are merged, .* disable_adapter\(\) is a context"):
        edits.disable_adapter_layers()


def test_unloading_gives_the_base_model_without_merging(edits, ids):
    base = logits(tiny_model("llama"), ids)
    edits.merge_adapter()
    assert edits.unload() is edits.model
    assert not edits.attached
    assert torch.equal(logits(edits.model, ids), base)


def test_a_weighted_adapter_is_the_weighted_sum(edits, ids):
    edits.add_weighted_adapter(["default", "b"], [0.5, -2.0], adapter_name="mix")
    edits.add_adapter("sum", 0.5 * edits["default"] - 2.0 * edits["b"])
    edits.set_adapter("mix")
    mixed = logits(edits.model, ids)
    edits.set_adapter("sum")
    assert torch.equal(logits(edits.model, ids), mixed)
    for arguments, message in [
        ((["default"], [1.0, 2.0], "x"), "1 adapters and 2 weights"),
        (([], [], "x"), "0 adapters and 0 weights"),
        ((["c"], [1.0], "x"), "no adapter 'c'"),
        ((["b"], [1.0], "mix"), "There is an adapter 'mix' already"),
        ((["b"], [1.0], "x", "svd"), "combination_type: found 'svd', expected 'linear'"),
    ]:
        with pytest.raises(HeadEditError, match=message):
            edits.add_weighted_adapter(*arguments)
    assert edits.adapters == ["default", "b", "mix", "sum"]


def test_a_row_is_routed_to_the_base_model_by_pefts_name_for_it(edits, ids):
    with edits.route(["b", "__base__"]):
        named = logits(edits.model, ids)
    with edits.route(["b", None]):
        assert torch.equal(logits(edits.model, ids), named)
    with pytest.raises(HeadEditError, match="'__base__' cannot name an adapter"):
        edits.add_adapter("__base__")


def test_the_handle_of_a_model_is_found_again(llama):
    with pytest.raises(HeadEditError, match=r"has no edits; headedit\.attach\(model\)"):
        headedit.handle(llama)
    edits = headedit.attach(llama)
    assert headedit.handle(llama) is edits
    edits.detach()
    with pytest.raises(HeadEditError, match="has no edits"):
        headedit.handle(llama)
