"""Saved edits give the same logits bit for bit, fit only their model, and are never half there: invariant 7.

Also the hardened form, the model card and the hub.
"""

import hashlib
import json
import os
import shutil
import warnings

import pytest
import safetensors.torch
import torch
import yaml
from saved_files import as_older, rewrite_header
from tiny import FACTS, logits, randomise, tiny_model
from transformers import AutoModelForCausalLM

import headedit
from headedit import EditConfig, HeadEditError
from headedit.edits.files.card import CARD_FILE, MARKER
from headedit.edits.files.format import CONFIG_FILE, TENSOR_FILE
from headedit.edits.files.header import header_text, with_text
from headedit.edits.files.hub import push_to_hub
from headedit.edits.files.storage import load_tensors, read
from headedit.edits.gate_set import close, open_gates
from headedit.edits.gates import SATURATED
from headedit.io.files import check_writable
from headedit.specs.registry import packaged_folder


@pytest.fixture
def saved(llama, tmp_path):
    edits = headedit.attach(llama)
    randomise(edits)
    edits.save_pretrained(tmp_path / "edits")
    return tmp_path / "edits"


@pytest.fixture
def older(saved):
    """The same edits as a version wrote them that had the config in the JSON alone."""
    return as_older(saved)


@pytest.mark.parametrize("model_type", sorted(FACTS))
def test_loading_on_a_fresh_base_gives_the_same_logits_bit_for_bit(model_type, ids, tmp_path):
    model = tiny_model(model_type)
    edits = headedit.attach(model)
    randomise(edits)
    edits.save_pretrained(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [CARD_FILE, TENSOR_FILE, CONFIG_FILE]
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
def test_every_variant_of_edits_is_saved_and_loaded_to_the_bit(config, llama, ids, tmp_path):
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
        ("llama", {"vocab_size": 256, "hidden_size": 64}, r"hidden_size: edits 32, model 64\."),
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


def test_a_vocabulary_of_another_size_is_only_warned_of(saved, llama, ids):
    model = tiny_model("llama")
    model.resize_token_embeddings(160)
    with pytest.warns(UserWarning, match=r"another vocabulary \(vocab_size: edits 128, model 160\)"):
        headedit.load(model, saved)
    assert torch.equal(logits(model, ids)[..., :128], logits(llama, ids))


def test_the_spec_travels_with_the_edits(saved, ids, llama):
    def toy(config):
        for part in (config["base_model"], config["spec"]):
            part.update({k: "toy" for k in part if k == "model_type"})
            part.update({k: ["toy"] for k in part if k == "model_types"})

    rewrite_header(saved, toy)
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
        payload = safetensors.torch.save(changed)
        tensors.write_bytes(payload)
        rewrite_hash(config, data, payload)

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
        ("no config", r"holds no headedit_config\.json, and headedit\.safetensors has no config in its header"),
        ("no tensors", r"headedit\.safetensors: cannot be read \(No such file"),
        ("config cut", r"headedit_config\.json: cannot be read"),
        ("config a list", r"the key 'format_version' is missing"),
        ("config of bytes", r"headedit_config\.json: cannot be read"),
        ("a newer format", r"format_version is 99, this headedit reads 1 and 2; it was written by headedit"),
        ("no sites", r"the key 'sites' is missing or not a list"),
        ("an odd site", r"sites: found \{'layer': 0\}, expected the keys layer, layers"),
        ("an unknown setting", r"config: unknown key 'gate'\. Did you mean 'gates'\?"),
        ("tensors cut", r"does not belong to the headedit_config\.json next to it"),
        ("tensors of another run", r"does not belong to the headedit_config\.json next to it"),
        ("not safetensors", r"is not a safetensors file"),
        ("a tensor missing", r"o_proj\.offset' is missing"),
        ("a tensor more", r"the tensor 'more' is not known"),
        ("another shape", r"has shape \(1, 16\), expected \(4, 16\)"),
        ("whole numbers", r"holds NaN, infinity or no floating-point"),
        ("not a number", r"holds NaN, infinity"),
    ],
)
def test_damaged_files_of_older_versions_are_refused_before_the_model_is_touched(older, ids, what, message):
    damage(older, what)
    refuses(older, ids, message)


def refuses(folder, ids, message):
    model = tiny_model("llama")
    base = logits(model, ids)
    with pytest.raises(HeadEditError, match=message) as caught:
        headedit.load(model, folder)
    assert str(folder) in str(caught.value)
    assert not hasattr(model, "headedit")
    assert torch.equal(logits(model, ids), base)


HEADER_DAMAGE = {
    "tensors cut": (lambda f: f.write_bytes(f.read_bytes()[:-8]), r"does not belong|is damaged"),
    "tensors changed": (lambda f: f.write_bytes(f.read_bytes()[:-4] + b"abcd"), r"is damaged: its tensors do not have"),
    "a newer format": (lambda f: rewrite_header(f.parent, lambda c: c.update(format_version=99)), r"99, this headedit"),
    "no sites": (
        lambda f: rewrite_header(f.parent, lambda c: c.update(sites=None)),
        r"the config in its header: .*'sites'",
    ),
    "no config": (lambda f: rewrite_header(f.parent, lambda c: c.clear()), r"in its header: the key 'format_version'"),
    "not JSON": (lambda f: f.write_bytes(with_text(f.read_bytes(), "{")), r"the config in its header cannot be read"),
}


@pytest.mark.parametrize("copy", [True, False])
@pytest.mark.parametrize("what", HEADER_DAMAGE)
def test_a_damaged_tensor_file_is_refused_before_the_model_is_touched(saved, ids, what, copy):
    change, message = HEADER_DAMAGE[what]
    if not copy:
        (saved / CONFIG_FILE).unlink()
    change(saved / TENSOR_FILE)
    refuses(saved, ids, message if copy or what != "tensors cut" else "damaged|has no config")


def test_edits_of_older_versions_load_and_are_saved_in_the_new_form(older, llama, ids, tmp_path):
    assert header_text((older / TENSOR_FILE).read_bytes()) is None
    fresh = tiny_model("llama")
    edits = headedit.load(fresh, older)
    assert torch.equal(logits(fresh, ids), logits(llama, ids))
    edits.save_pretrained(older)
    assert header_text((older / TENSOR_FILE).read_bytes()) is not None
    headedit.load(tiny_model("llama"), older)


def test_the_copy_of_the_config_is_what_older_versions_read(saved):
    copy, payload = json.loads((saved / CONFIG_FILE).read_text()), (saved / TENSOR_FILE).read_bytes()
    assert copy.pop("tensors_sha256") == hashlib.sha256(payload).hexdigest()
    assert copy == json.loads(header_text(payload))


def test_edits_load_without_the_copy_of_their_config(saved, llama, ids):
    (saved / CONFIG_FILE).unlink()
    fresh = tiny_model("llama")
    headedit.load(fresh, saved)
    assert torch.equal(logits(fresh, ids), logits(llama, ids))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text.replace('"strength": 1.0', '"strength": 3.0'), r"\(it differs in strength\)"),
        (lambda text: "{", r"cannot be read"),
        (lambda text: "[]", r"differs in format_version"),
    ],
)
def test_a_copy_that_differs_is_named_and_the_header_counts(saved, llama, ids, change, message):
    (saved / CONFIG_FILE).write_text(change((saved / CONFIG_FILE).read_text()))
    fresh = tiny_model("llama")
    with pytest.warns(UserWarning, match=rf"headedit_config\.json: is not the config .*{message}.*header.* counts"):
        edits = headedit.load(fresh, saved)
    assert torch.equal(logits(fresh, ids), logits(llama, ids))
    edits.save_pretrained(saved)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        headedit.load(tiny_model("llama"), saved)


@pytest.mark.parametrize("stop_at", [TENSOR_FILE, CONFIG_FILE])
def test_a_save_that_is_interrupted_leaves_the_old_edits_or_the_new_ones(saved, llama, ids, monkeypatch, stop_at):
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
    assert sorted(p.name for p in saved.iterdir()) == [CARD_FILE, TENSOR_FILE, CONFIG_FILE]
    fresh = tiny_model("llama")
    if stop_at == TENSOR_FILE:
        headedit.load(fresh, saved)
        assert torch.equal(logits(fresh, ids), before)
    else:
        with pytest.warns(UserWarning, match="header"):
            headedit.load(fresh, saved)
        assert torch.equal(logits(fresh, ids), logits(llama_edits.model, ids))


def test_edits_are_saved_where_only_the_copy_of_their_config_cannot_be(saved, llama, ids):
    (saved / CONFIG_FILE).unlink()
    (saved / CONFIG_FILE).mkdir()
    randomise(edits := headedit.load(fresh := tiny_model("llama"), saved), seed=7)
    with pytest.warns(UserWarning, match=r"headedit_config\.json: cannot be written .* saved without this copy"):
        edits.save_pretrained(saved)
    headedit.load(again := tiny_model("llama"), saved)
    assert torch.equal(logits(again, ids), logits(fresh, ids))


@pytest.mark.parametrize("hardened", [False, True])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("name", ["offset", "scale", "offset_gate"])
def test_edits_that_are_not_finite_are_refused_before_anything_on_disk_is_touched(
    saved, llama, ids, tmp_path, monkeypatch, name, value, hardened
):
    edits = headedit.handle(llama)
    before = {path.name: path.read_bytes() for path in saved.iterdir()}
    edit = edits.module.site_edits[1]
    with torch.no_grad():
        (edit.gates if name.endswith("gate") else edit.vectors)[name][2] = value
    message = rf"layers\.1\.self_attn\.o_proj: the {name.replace('_', ' ')} of head 2 is not finite"
    with pytest.raises(HeadEditError, match=message):
        edits.save_pretrained(saved, hardened=hardened)
    with pytest.raises(HeadEditError, match=message):
        edits.save_pretrained(tmp_path / "new", hardened=hardened)
    with pytest.raises(HeadEditError, match=message):
        edits.to_peft(tmp_path / "peft")
    hub = Hub(tmp_path / "hub", monkeypatch)
    with pytest.raises(HeadEditError, match=message):
        edits.push_to_hub("someone/edits", hardened=hardened)
    assert hub.calls == []
    assert {path.name: path.read_bytes() for path in saved.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == [saved.name]


def test_nothing_that_is_saved_holds_the_path_of_the_base_model(tmp_path, monkeypatch):
    tiny_model("llama").save_pretrained(tmp_path / "secret" / "tiny")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "secret" / "tiny")
    spec = tmp_path / "secret" / "spec.yaml"
    spec.write_text((packaged_folder() / "llama.yaml").read_text())
    edits = headedit.attach(model, spec=spec)
    edits.set_head(0, 1, offset=torch.ones(16))
    edits.save_pretrained(tmp_path / "saved" / "edits")
    edits.to_peft(tmp_path / "saved" / "peft")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    Hub(tmp_path / "saved" / "hub", monkeypatch)
    edits.push_to_hub("someone/edits")
    rows = [{"input_ids": [1, 2, 3], "labels": [1, 2, 3]}] * 16
    options = {"recipe": "ungated", "epochs": 1, "min_steps": 1, "progress": False}
    headedit.fit(edits, rows, output_dir=tmp_path / "saved" / "run", **options)
    with pytest.warns(UserWarning, match="saved with the model"):
        model.save_pretrained(tmp_path / "saved" / "model")
    files = [path for path in (tmp_path / "saved").rglob("*") if path.is_file()]
    assert len(files) > 10
    assert [str(path) for path in files if b"secret" in path.read_bytes()] == []
    names = json.loads((tmp_path / "saved" / "edits" / CONFIG_FILE).read_text())["base_model"]["name_or_path"]
    assert names == json.loads((tmp_path / "saved" / "run" / "run.json").read_text())["base_model"] == "tiny"


def test_a_folder_that_cannot_be_written(llama, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(HeadEditError, match=r"file/out: the edits cannot be written \(Not a directory\)\. Choose"):
        headedit.attach(llama).save_pretrained(tmp_path / "file" / "out")


def test_looking_whether_a_folder_can_be_written_makes_nothing_that_another_process_could_meet(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "mkdir", lambda path, mode=0o777: pytest.fail(f"made {path}"))
    folder = tmp_path / "of" / "several" / "processes"
    assert check_writable(folder) == folder
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["file", "file/out", "nowhere", "x" * 300])
def test_a_folder_that_cannot_be_made_is_refused_before_any_work(name, tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "nowhere").symlink_to(tmp_path / "missing")
    with pytest.raises(HeadEditError, match=r"cannot be written .*Choose another output folder"):
        check_writable(tmp_path / name)


@pytest.mark.parametrize("name", ["nobody/nothing", "not a name!", "./missing/folder"])
def test_loading_from_a_name_that_leads_nowhere_is_refused(llama, name):
    with pytest.raises(HeadEditError, match="there is no such folder"):
        headedit.load(llama, name)


VARIANTS = [
    {},
    {"gates": "shared"},
    {"eval_gate": "expectation"},
    {"vectors": "offset"},
    {"gates": "shared", "vectors": "scale", "layers": [1]},
    {"gates": "none"},
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("config", VARIANTS)
def test_a_hardened_file_gives_the_logits_of_hardened_edits_bit_for_bit(config, dtype, llama, ids, tmp_path):
    edits = headedit.attach(llama, config=EditConfig(**config))
    randomise(edits)
    if edits.gate_parameters():
        close(edits.module, open_gates(edits.module)[::2])
    llama.to(dtype)
    before, opened = logits(llama, ids), edits.count_open()
    edits.save_pretrained(tmp_path, hardened=True)
    assert torch.equal(logits(llama, ids), before)  # saving leaves the edits as they are
    edits.harden()
    fresh = tiny_model("llama").to(dtype)
    loaded = headedit.load(fresh, tmp_path)
    assert torch.equal(logits(fresh, ids), logits(llama, ids))
    if edits.config.eval_gate == "clip":
        assert torch.equal(logits(fresh, ids), before)
    assert loaded.count_open() == opened
    assert [e.idle for e in loaded.module] == [e.idle for e in edits.module]
    for ours, theirs in zip(edits.module.named_parameters(), loaded.module.named_parameters(), strict=True):
        assert ours[0] == theirs[0]
        assert torch.equal(ours[1], theirs[1])
        assert ours[1].requires_grad == theirs[1].requires_grad
    fresh.train()
    assert torch.equal(logits(fresh, ids), logits(llama, ids))
    shown = read(tmp_path)
    assert (
        torch.equal(
            shown.gates().offset,
            loaded.gates().offset,
        )
        or config.get("vectors") == "scale"
    )


def test_a_hardened_file_holds_open_heads_alone(llama, tmp_path):
    edits = headedit.attach(llama)
    edits.set_head(0, 2, offset=torch.arange(16.0))
    edits.set_head(0, 3, offset=torch.ones(16), scale=0.5)
    close(edits.module, [gate for gate in open_gates(edits.module) if gate.head < 2 or gate.site == 1])
    edits.save_pretrained(tmp_path, hardened=True)
    tensors = safetensors.torch.load_file(tmp_path / TENSOR_FILE)
    name = "layers.0.self_attn.o_proj"
    assert {key: tuple(value.shape) for key, value in tensors.items()} == {
        f"{name}.offset": (2, 16),
        f"{name}.offset_heads": (2,),
        f"{name}.scale": (1, 16),
        f"{name}.scale_heads": (1,),
    }
    assert tensors[f"{name}.offset_heads"].tolist() == [2, 3]
    assert tensors[f"{name}.scale"].tolist() == [[-0.5] * 16]
    assert json.loads((tmp_path / CONFIG_FILE).read_text())["format_version"] == 2
    loaded = headedit.load(tiny_model("llama"), tmp_path)
    assert loaded.module.site_edits[0].gates["offset_gate"].tolist() == [-SATURATED, -SATURATED, SATURATED, SATURATED]
    assert loaded.gate_parameters() == []
    assert [edit.idle for edit in loaded.module] == [False, True]


def test_edits_of_which_nothing_is_open_are_saved_hardened_too(llama, ids, tmp_path):
    base = logits(tiny_model("llama"), ids)
    edits = headedit.attach(llama)
    randomise(edits)
    close(edits.module, open_gates(edits.module))
    edits.save_pretrained(tmp_path, hardened=True)
    assert safetensors.torch.load_file(tmp_path / TENSOR_FILE) == {}
    fresh = tiny_model("llama")
    assert headedit.load(fresh, tmp_path).count_open()["any"] == (0, 8)
    assert torch.equal(logits(fresh, ids), base)


def test_hardened_edits_are_saved_hardened_by_themselves_and_put_back_in_place(llama, ids, tmp_path):
    edits = headedit.attach(llama)
    randomise(edits)
    edits.save_pretrained(tmp_path / "full")
    edits.harden()
    wanted = logits(llama, ids)
    edits.save_pretrained(tmp_path / "hardened")
    versions = {f.name: json.loads((f / CONFIG_FILE).read_text())["format_version"] for f in tmp_path.iterdir()}
    assert versions == {"full": 1, "hardened": 2}
    load_tensors(edits, tmp_path / "full")
    assert torch.equal(logits(llama, ids), wanted)
    load_tensors(edits, tmp_path / "hardened")
    assert torch.equal(logits(llama, ids), wanted)
    headedit.load(fresh := tiny_model("llama"), tmp_path / "hardened").save_pretrained(tmp_path / "again")
    assert (tmp_path / "again" / TENSOR_FILE).read_bytes() == (tmp_path / "hardened" / TENSOR_FILE).read_bytes()
    assert torch.equal(logits(fresh, ids), wanted)


def test_edits_put_back_over_idle_ones_act(llama, ids, saved):
    edits = headedit.attach(tiny_model("llama"))
    close(edits.module, open_gates(edits.module))
    edits.harden()
    load_tensors(edits, saved)
    assert torch.equal(logits(edits.model, ids), logits(llama, ids))


def test_parameters_of_several_dtypes_cannot_be_saved_hardened(llama, tmp_path):
    edits = headedit.attach(llama)
    edits.module.site_edits[0].bfloat16()
    with pytest.raises(HeadEditError, match="several dtypes"):
        edits.save_pretrained(tmp_path, hardened=True)
    edits.harden()
    edits.save_pretrained(tmp_path)
    assert json.loads((tmp_path / CONFIG_FILE).read_text())["format_version"] == 1


SHAPES = {  # layers, heads, head_dim, hidden size, bytes at most: full, hardened with 5 % of the heads
    "1B": (16, 32, 64, 2048, 300_000, 30_000),
    "8B": (32, 32, 128, 4096, 1_120_000, 80_000),
    "13B": (40, 40, 128, 5120, 1_750_000, 120_000),
    "70B": (80, 64, 128, 8192, 5_400_000, 330_000),
}


def measure_sizes(name, folder):
    """Bytes of both files together, full and hardened with 5 % of the heads, for a Llama on the meta device."""
    from transformers import LlamaConfig, LlamaForCausalLM

    layers, heads, width, hidden, *_ = SHAPES[name]
    config = LlamaConfig(
        num_hidden_layers=layers, num_attention_heads=heads, head_dim=width, hidden_size=hidden, vocab_size=128_256
    )
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    edits = headedit.attach(model, config=EditConfig(init_std=1e-2))
    kept = range(0, layers * heads, 20)
    close(edits.module, [gate for gate in open_gates(edits.module) if gate.site * heads + gate.head not in kept])
    sizes = []
    for hardened in (False, True):
        edits.save_pretrained(folder / str(hardened), hardened=hardened, card=False)
        sizes.append(sum(path.stat().st_size for path in (folder / str(hardened)).iterdir()))
    return sizes, len(kept)


@pytest.mark.parametrize("name", SHAPES)
def test_saved_edits_are_small(name, tmp_path):
    (full, hardened), _ = measure_sizes(name, tmp_path)
    assert full < SHAPES[name][4]
    assert hardened < SHAPES[name][5]


def test_the_card_says_what_the_edits_are(llama, tmp_path):
    llama.config._name_or_path = "someone/tiny-llama"
    edits = headedit.attach(llama)
    close(edits.module, open_gates(edits.module))
    edits.set_head(0, 1, offset=torch.ones(16))
    edits.set_head(1, 0, scale=0.5)
    edits.set_head(1, 3, scale=0.5, offset=torch.ones(16))
    (tmp_path / "run.json").write_text('{"recipe": "localise", "seed": 3, "best_eval_loss": 0.25, "settings": {}}')
    edits.save_pretrained(tmp_path, metrics={"exact match": 0.98, "a | b\nc": 3})
    text = (tmp_path / CARD_FILE).read_text()
    _, front, body = text.split("---\n", 2)
    assert yaml.safe_load(front) == {
        "library_name": "headedit",
        "pipeline_tag": "text-generation",
        "base_model": "someone/tiny-llama",
        "base_model_relation": "adapter",
        "tags": ["headedit", "attention-heads", "activation-editing", "llama"],
        "model-index": yaml.safe_load(front)["model-index"],
    }
    assert body.strip().startswith(MARKER)
    assert "layer  0\n    0  ·o··\n    1  s··#\n```" in body
    for row in ("edited heads | 3 of 8", "open offset gates | 2 of 8", "exact match | 0.98", r"a \| b c | 3"):
        assert f"| {row} |" in body
    for row in ("recipe | localise", "seed | 3", "validation loss | 0.2500 nats per token"):
        assert f"| {row} |" in body
    assert 'headedit.load(model, "this-folder")' in body
    code = body.split("```python\n")[1].split("```")[0]
    compile(code, "card", "exec")
    assert len(code.strip().splitlines()) == 3


def test_the_card_draws_every_kind_of_site_and_counts_what_is_too_wide(llama, tmp_path):
    headedit.attach(llama, config=EditConfig(sites=["attention", "mlp"], mlp_groups=48)).save_pretrained(tmp_path)
    text = (tmp_path / CARD_FILE).read_text()
    assert "Attention, layers down" in text
    assert "Mlp, layers down" in text
    wide = tiny_model("llama", intermediate_size=192)
    edits = headedit.attach(wide, config=EditConfig(sites=["mlp"], mlp_groups=192, layers=[1]))
    edits.save_pretrained(tmp_path)
    assert "| layer 1 | 192 of 192 |" in (tmp_path / CARD_FILE).read_text()


def test_a_card_of_ones_own_is_kept_and_ours_is_written_anew(llama, tmp_path):
    edits = headedit.attach(llama)
    edits.save_pretrained(tmp_path, metrics={"earlier run": 1.0})
    edits.save_pretrained(tmp_path)
    assert "earlier run" not in (tmp_path / CARD_FILE).read_text()
    (tmp_path / CARD_FILE).write_text("mine")
    edits.save_pretrained(tmp_path)
    assert (tmp_path / CARD_FILE).read_text() == "mine"
    edits.save_pretrained(tmp_path / "other", card=False)
    assert not (tmp_path / "other" / CARD_FILE).exists()


def test_a_local_base_model_is_no_hub_id_and_a_broken_run_is_left_out(llama, tmp_path):
    llama.config._name_or_path = str(tmp_path)
    (tmp_path / "run.json").write_text("[" * 5000)
    headedit.attach(llama).save_pretrained(tmp_path)
    text = (tmp_path / CARD_FILE).read_text()
    assert "base_model" not in text
    assert str(tmp_path) not in text
    assert "## Training" not in text


@pytest.mark.parametrize("metrics", [{"exact match": "98 %"}, {"a": True}, {1: 0.5}])
def test_a_metric_that_is_not_a_number_is_refused(metrics, llama, tmp_path):
    with pytest.raises(HeadEditError, match="expected a name and a number"):
        headedit.attach(llama).save_pretrained(tmp_path / "out", metrics=metrics)
    assert not (tmp_path / "out").exists()


class Hub:
    """A folder that stands for the hub."""

    def __init__(self, root, monkeypatch):
        self.root, self.calls = root, []
        hub = self

        class Api:
            def __init__(self, token=None):
                hub.calls.append(("token", token))

            def create_repo(self, repo_id, *, private, exist_ok):
                hub.calls.append(("create_repo", repo_id, private))
                (hub.root / repo_id / "main").mkdir(parents=True, exist_ok=exist_ok)
                return type("Url", (), {"repo_id": repo_id})

            def create_branch(self, repo_id, *, branch, exist_ok):
                shutil.copytree(hub.root / repo_id / "main", hub.root / repo_id / branch, dirs_exist_ok=exist_ok)

            def file_exists(self, repo_id, filename, *, revision=None):
                return (hub.root / repo_id / (revision or "main") / filename).is_file()

            def hf_hub_download(self, repo_id, filename, *, revision=None):
                return str(hub.root / repo_id / (revision or "main") / filename)

            def upload_folder(self, *, repo_id, folder_path, revision, commit_message, ignore_patterns):
                ignored = shutil.ignore_patterns(*(ignore_patterns or []))
                target = hub.root / repo_id / (revision or "main")
                shutil.copytree(folder_path, target, dirs_exist_ok=True, ignore=ignored)
                hub.calls.append(("upload", repo_id, revision, commit_message))
                return type("Commit", (), {"commit_url": f"https://hub/{repo_id}"})

        def snapshot_download(repo_id, *, revision=None, allow_patterns=None):
            return str(hub.root / repo_id / (revision or "main"))

        monkeypatch.setattr("huggingface_hub.HfApi", Api)
        monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    return Hub(tmp_path / "hub", monkeypatch)


@pytest.mark.parametrize("revision", [None, "v1"])
def test_edits_pushed_to_the_hub_are_loaded_by_their_id(revision, hub, llama, ids):
    edits = headedit.attach(llama)
    randomise(edits)
    url = edits.push_to_hub("someone/edits", private=True, revision=revision, hardened=True, metrics={"accuracy": 0.5})
    assert url == "https://hub/someone/edits"
    assert ("create_repo", "someone/edits", True) in hub.calls
    assert hub.calls[-1] == ("upload", "someone/edits", revision, "Upload edits by headedit")
    folder = hub.root / "someone" / "edits" / (revision or "main")
    assert sorted(path.name for path in folder.iterdir()) == [CARD_FILE, TENSOR_FILE, CONFIG_FILE]
    text = (folder / CARD_FILE).read_text()
    assert 'headedit.load(model, "someone/edits")' in text
    assert "| accuracy | 0.5 |" in text
    fresh = tiny_model("llama")
    headedit.load(fresh, "someone/edits", revision=revision)
    assert torch.equal(logits(fresh, ids), logits(llama, ids))


def test_a_card_of_ones_own_on_the_hub_is_kept(hub, llama):
    edits = headedit.attach(llama)
    push_to_hub(edits, "someone/edits", commit_message="first", token="secret")
    card = hub.root / "someone" / "edits" / "main" / CARD_FILE
    push_to_hub(edits, "someone/edits", metrics={"new": 1})
    assert "| new | 1 |" in card.read_text()
    card.write_text("mine")
    push_to_hub(edits, "someone/edits")
    assert card.read_text() == "mine"
    assert ("token", "secret") in hub.calls


def test_what_the_hub_refuses_is_told_with_what_to_do(llama, monkeypatch):
    import huggingface_hub

    with pytest.raises(HeadEditError, match=r"not a name!: the edits could not be uploaded \(HFValidationError"):
        push_to_hub(headedit.attach(llama), "not a name!")

    def refuse(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", refuse)
    with pytest.raises(HeadEditError, match=r"a/b: .* \(OSError: no network\)\. Log in with 'hf auth login'"):
        push_to_hub(headedit.attach(tiny_model("llama")), "a/b")


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
