"""Saved edits give the same logits bit for bit, fit only their model, and are never half there: invariant 7."""

import json
import os
import shutil

import pytest
import safetensors.torch
import torch
from tiny import FACTS, logits, randomise, tiny_model

import headedit
from headedit import EditConfig, HeadEditError
from headedit.edits import files
from headedit.edits.files import CONFIG_FILE, TENSOR_FILE


@pytest.fixture
def saved(llama, tmp_path):
    edits = headedit.attach(llama)
    randomise(edits)
    edits.save_pretrained(tmp_path / "edits")
    return tmp_path / "edits"


@pytest.mark.parametrize("model_type", sorted(FACTS))
def test_loading_on_a_fresh_base_gives_the_same_logits_bit_for_bit(model_type, ids, tmp_path):
    model = tiny_model(model_type)
    edits = headedit.attach(model)
    randomise(edits)
    edits.save_pretrained(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [TENSOR_FILE, CONFIG_FILE]
    fresh = tiny_model(model_type)
    loaded = headedit.load(fresh, tmp_path)
    assert torch.equal(logits(fresh, ids), logits(model, ids))
    assert [vars(s) | {"module": 0} for s in loaded.sites] == [vars(s) | {"module": 0} for s in edits.sites]


@pytest.mark.parametrize(
    "config",
    [
        {"vectors": "offset", "gates": "none"},
        {"gates": "shared", "eval_gate": "expectation"},
        {"layers": "1:", "temperature": 0.5, "stretch": (-0.2, 1.3)},
        {"layers": [0], "vectors": "scale"},
    ],
)
def test_every_variant_comes_back(config, llama, ids, tmp_path):
    edits = headedit.attach(llama, config=EditConfig(**config))
    randomise(edits)
    edits.save_pretrained(tmp_path)
    fresh = tiny_model("llama")
    assert headedit.load(fresh, tmp_path).config == edits.config
    assert torch.equal(logits(fresh, ids), logits(llama, ids))


def test_detached_edits_can_be_saved_and_the_base_may_be_bf16(llama, ids, tmp_path):
    llama.to(torch.bfloat16)
    edits = headedit.attach(llama)
    randomise(edits)
    wanted = logits(llama, ids)
    edits.detach()
    edits.save_pretrained(tmp_path)
    headedit.load(llama, tmp_path)
    assert torch.equal(logits(llama, ids), wanted)


def test_edits_cast_to_low_precision_come_back_in_it(llama, ids, tmp_path):
    edits = headedit.attach(llama)
    randomise(edits)
    llama.to(torch.bfloat16)
    edits.save_pretrained(tmp_path)
    fresh = tiny_model("llama").to(torch.bfloat16)
    headedit.load(fresh, tmp_path)
    assert torch.equal(logits(fresh, ids), logits(llama, ids))


def test_the_config_says_what_the_edits_are_of(saved):
    config = json.loads((saved / CONFIG_FILE).read_text())
    assert config["base_model"]["model_type"] == "llama"
    assert config["base_model"]["class"] == "LlamaForCausalLM"
    assert {"name_or_path", "revision", "hidden_size", "num_hidden_layers", "vocab_size"} <= set(config["base_model"])
    assert set(config["versions"]) == {"headedit", "torch", "transformers"}
    assert len(config["spec_sha256"]) == len(config["tensors_sha256"]) == 64
    assert config["sites"][1] == {"layer": 1, "layers": 2, "kind": "attention", "name": "layers.1.self_attn.o_proj"} | {
        "heads": 4,
        "head_dim": 16,
    }
    tensors = safetensors.torch.load_file(saved / TENSOR_FILE)
    assert {k: tuple(v.shape) for k, v in tensors.items() if ".1." in k} == {
        "layers.1.self_attn.o_proj.offset": (4, 16),
        "layers.1.self_attn.o_proj.scale": (4, 16),
        "layers.1.self_attn.o_proj.offset_gate": (4,),
        "layers.1.self_attn.o_proj.scale_gate": (4,),
    }


@pytest.mark.parametrize(
    ("model_type", "changes", "message"),
    [
        ("qwen3", {}, r"model_type: edits llama, model qwen3"),
        ("llama", {"num_hidden_layers": 3}, r"num_hidden_layers: edits 2, model 3"),
        ("llama", {"num_attention_heads": 8, "head_dim": 8}, r"num_attention_heads: edits 4, model 8"),
        ("llama", {"head_dim": 8}, r"head_dim: edits 16, model 8"),
        ("llama", {"vocab_size": 256, "hidden_size": 64}, r"hidden_size: edits 32, model 64; vocab_size: edits 128"),
    ],
)
def test_another_model_is_told_what_differs_and_stays_untouched(saved, ids, model_type, changes, message):
    model = tiny_model(model_type, **changes)
    base = logits(model, ids)
    with pytest.raises(HeadEditError, match=r"made for another model.*They differ in .*" + message):
        headedit.load(model, saved)
    assert torch.equal(logits(model, ids), base)
    assert not hasattr(model, "headedit")


def test_a_model_that_has_edits_is_not_loaded_over(llama, saved):
    with pytest.raises(HeadEditError, match="has edits attached already"):
        headedit.load(llama, saved)


def test_the_spec_travels_with_the_edits(saved, ids, llama):
    config = json.loads((saved / CONFIG_FILE).read_text())
    for part in (config["base_model"], config["spec"]):
        part.update({k: "toy" for k in part if k == "model_type"} | {k: ["toy"] for k in part if k == "model_types"})
    (saved / CONFIG_FILE).write_text(json.dumps(config))
    model = tiny_model("llama")
    model.config.model_type = "toy"  # a type that no registry knows
    headedit.load(model, saved)
    assert torch.equal(logits(model, ids), logits(llama, ids))


def damage(folder, what):
    config, tensors = folder / CONFIG_FILE, folder / TENSOR_FILE
    data = json.loads(config.read_text())
    values = safetensors.torch.load_file(tensors)
    first = sorted(values)[0]

    def pair(changed):
        files.write_pair(folder, {k: v for k, v in data.items() if k != "format_version"}, changed)

    def rewrite(**changes):
        config.write_text(json.dumps({**data, **changes}))

    {
        "no config": config.unlink,
        "no tensors": tensors.unlink,
        "config cut": lambda: config.write_text(config.read_text()[:200]),
        "config a list": lambda: config.write_text("[]"),
        "config of bytes": lambda: config.write_bytes(b"\xff\xfe"),
        "a newer format": lambda: rewrite(format_version=99),
        "no sites": lambda: rewrite(sites=None),
        "an odd site": lambda: rewrite(sites=[{"layer": 0}]),
        "an unknown setting": lambda: rewrite(config={"gate": "none"}),
        "tensors cut": lambda: tensors.write_bytes(tensors.read_bytes()[:-8]),
        "tensors of another run": lambda: tensors.write_bytes(safetensors.torch.save({"a": torch.zeros(1)})),
        "not safetensors": lambda: (tensors.write_bytes(b"x" * 64), rewrite_hash(config, data, b"x" * 64)),
        "a tensor missing": lambda: pair({k: v for k, v in values.items() if k != first}),
        "a tensor more": lambda: pair({**values, "more": torch.zeros(1)}),
        "another shape": lambda: pair({**values, first: values[first][:1]}),
        "whole numbers": lambda: pair({**values, first: values[first].int()}),
        "not a number": lambda: pair({**values, first: values[first] * torch.nan}),
    }[what]()


def rewrite_hash(config, data, payload):
    import hashlib

    config.write_text(json.dumps({**data, "tensors_sha256": hashlib.sha256(payload).hexdigest()}))


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("no config", r"holds no headedit_config\.json"),
        ("no tensors", r"headedit\.safetensors: cannot be read \(No such file"),
        ("config cut", r"headedit_config\.json: cannot be read"),
        ("config a list", r"the key 'format_version' is missing"),
        ("config of bytes", r"headedit_config\.json: cannot be read"),
        ("a newer format", r"format_version is 99, this headedit reads 1; it was written by headedit"),
        ("no sites", r"the key 'sites' is missing or not a list"),
        ("an odd site", r"sites: found \{'layer': 0\}, expected the keys layer, layers"),
        ("an unknown setting", r"config: unknown key 'gate'\. Did you mean 'gates'\?"),
        ("tensors cut", r"does not belong to the headedit_config\.json beside it"),
        ("tensors of another run", r"does not belong to the headedit_config\.json beside it"),
        ("not safetensors", r"is not a safetensors file"),
        ("a tensor missing", r"o_proj\.offset' is missing"),
        ("a tensor more", r"the tensor 'more' is not known"),
        ("another shape", r"has shape \(1, 16\), expected \(4, 16\)"),
        ("whole numbers", r"holds NaN, infinity or no floating-point"),
        ("not a number", r"holds NaN, infinity"),
    ],
)
def test_damaged_files_are_refused_before_the_model_is_touched(saved, ids, what, message):
    damage(saved, what)
    model = tiny_model("llama")
    base = logits(model, ids)
    with pytest.raises(HeadEditError, match=message) as caught:
        headedit.load(model, saved)
    assert str(saved) in str(caught.value)
    assert not hasattr(model, "headedit")
    assert torch.equal(logits(model, ids), base)


@pytest.mark.parametrize("stop_at", [TENSOR_FILE, CONFIG_FILE])
def test_a_save_that_is_interrupted_never_leaves_a_pair_that_loads_wrongly(saved, llama, ids, monkeypatch, stop_at):
    before = logits(llama, ids)
    randomise(llama_edits := headedit.load(tiny_model("llama"), saved), seed=7)
    replace = os.replace

    def failing(source, target):
        if str(target).endswith(stop_at):
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", failing)
    with pytest.raises(KeyboardInterrupt):
        llama_edits.save_pretrained(saved)
    monkeypatch.undo()
    assert sorted(p.name for p in saved.iterdir()) == [TENSOR_FILE, CONFIG_FILE]
    fresh = tiny_model("llama")
    if stop_at == TENSOR_FILE:
        headedit.load(fresh, saved)
        assert torch.equal(logits(fresh, ids), before)
    else:
        with pytest.raises(HeadEditError, match="does not belong"):
            headedit.load(fresh, saved)


def test_a_folder_that_cannot_be_written(llama, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(HeadEditError, match=r"file/out: the edits cannot be written \(Not a directory\)\. Choose"):
        headedit.attach(llama).save_pretrained(tmp_path / "file" / "out")


@pytest.mark.parametrize("name", ["nobody/nothing", "not a name!", "./missing/folder"])
def test_a_name_that_leads_nowhere(llama, name):
    with pytest.raises(HeadEditError, match="there is no such folder"):
        headedit.load(llama, name)


def test_a_hub_snapshot_is_loaded_by_its_id(saved, ids, llama, tmp_path, monkeypatch):
    """A repository that was downloaded before, as it lies in the hub's cache, with no network."""
    import huggingface_hub.constants

    repository, commit = tmp_path / "cache" / "models--someone--edits", "a" * 40
    shutil.copytree(saved, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    model = tiny_model("llama")
    headedit.load(model, "someone/edits")
    assert torch.equal(logits(model, ids), logits(llama, ids))
