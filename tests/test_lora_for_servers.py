"""A scale alone as a LoRA without a bias and of one rank, in the folder that servers of many LoRAs read."""

import json

import pytest
import torch
from safetensors.torch import load_file
from tiny import logits, randomise, tiny_model

import headedit
from headedit import EditConfig, HeadEditError

peft = pytest.importorskip("peft")


def scaled(model_type="llama", **config):
    edits = headedit.attach(tiny_model(model_type), config=EditConfig(**{"vectors": "scale", **config}))
    randomise(edits)
    return edits


def read(folder):
    return json.loads((folder / "adapter_config.json").read_text()), load_file(folder / "adapter_model.safetensors")


def test_a_scale_is_a_lora_without_a_bias_with_one_rank_at_every_site(tmp_path):
    edits = headedit.attach(tiny_model("llama"))
    edits.set_head(0, 1, scale=0.5)
    edits.set_head(1, 0, scale=0.5)
    edits.set_head(1, 3, scale=2.0)
    edits.to_peft(tmp_path, form="lora")
    config, tensors = read(tmp_path)
    assert config["peft_type"] == "LORA"
    assert config["r"] == config["lora_alpha"] == 32  # two heads of 16, so that the scaling is 1
    assert config["bias"] == "none"
    assert not config["lora_bias"]
    assert not config["rank_pattern"]
    assert not config["alpha_pattern"]
    assert sorted(config["target_modules"]) == [f"model.layers.{i}.self_attn.o_proj" for i in range(2)]
    assert set(tensors) == {f"base_model.model.{p}.lora_{x}.weight" for p in config["target_modules"] for x in "AB"}
    shapes = {name[-len("A.weight") :]: tuple(t.shape) for name, t in tensors.items()}
    assert shapes == {"A.weight": (32, 64), "B.weight": (32, 32)}


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "qwen2", "gpt_neox", "gemma2", "mixtral"])
def test_a_lora_for_servers_computes_the_same_in_peft(model_type, ids, tmp_path):
    edits = scaled(model_type)
    wanted = logits(edits.model, ids)
    edits.to_peft(tmp_path, form="lora")
    base = tiny_model(model_type)
    assert not torch.allclose(wanted, logits(base, ids), atol=1e-3)
    loaded = peft.PeftModel.from_pretrained(base, tmp_path).eval()
    assert torch.allclose(wanted, logits(loaded, ids), atol=1e-5)


def test_an_offset_is_refused_by_name_with_the_way_out_and_nothing_is_written(tmp_path):
    edits = headedit.attach(tiny_model("llama"))
    edits.set_head(1, 2, offset=torch.ones(16))
    with pytest.raises(HeadEditError, match=r"layers\.1\.self_attn\.o_proj have an offset.*headedit merge.*'scale'"):
        edits.to_peft(tmp_path / "lora", form="lora")
    assert not (tmp_path / "lora").exists()


def test_a_closed_offset_is_none(ids, tmp_path):
    edits = headedit.attach(tiny_model("llama"))
    edits.set_head(0, 0, scale=3.0)
    edits.to_peft(tmp_path, form="lora")
    assert read(tmp_path)[0]["target_modules"] == ["model.layers.0.self_attn.o_proj"]


def test_edits_that_change_nothing_are_a_lora_that_changes_nothing(ids, tmp_path):
    headedit.attach(tiny_model("llama"), config=EditConfig(vectors="scale")).to_peft(tmp_path, form="lora")
    base = tiny_model("llama")
    before = logits(base, ids)
    assert read(tmp_path)[0]["r"] == 1
    assert torch.equal(before, logits(peft.PeftModel.from_pretrained(base, tmp_path).eval(), ids))


def test_an_unknown_form_is_refused(tmp_path):
    with pytest.raises(HeadEditError, match=r"form: found 'loras', expected one of auto, lora\. Did you mean 'lora'"):
        scaled().to_peft(tmp_path, form="loras")
