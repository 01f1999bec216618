"""A model that is saved with its edits on: headedit.load reads them from its folder, from_pretrained gives the base."""

import json
import logging
import warnings

import pytest
import safetensors.torch
import torch
from tiny import logits, randomise, tiny_model
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

import headedit
from headedit import EditConfig, HeadEditError
from headedit.edits.files.model_weights import INDEX_FILE, WEIGHTS_FILE
from headedit.edits.files.storage import read, read_record
from headedit.edits.gate_set import close, open_gates

saving = pytest.mark.filterwarnings("ignore:The edits are saved with the model")
ROWS = [{"input_ids": [1, 5, 9, 2], "labels": [1, 5, 9, 2]}] * 4


def edited(model=None, **config):
    model = tiny_model("llama") if model is None else model
    edits = headedit.attach(model, config=EditConfig(**config))
    randomise(edits)
    edits.strength = 0.7
    return model, edits


def by_save_pretrained(model, folder):
    model.save_pretrained(folder)


def by_shards(model, folder):
    model.save_pretrained(folder, max_shard_size=600)
    assert (folder / INDEX_FILE).is_file()
    names = json.loads((folder / INDEX_FILE).read_text())["weight_map"]
    assert len({file for key, file in names.items() if key.startswith("headedit.")}) > 1


def by_trainer(model, folder):
    trainer(model, folder).save_model(folder)


def by_checkpoint(model, folder):
    arguments = trainer(model, folder.parent / "run", max_steps=1, learning_rate=0.1, save_steps=1)
    arguments.train()
    model.eval()
    (folder.parent / "run" / "checkpoint-1").rename(folder)


def trainer(model, folder, **more):
    options = {"report_to": [], "use_cpu": True, "disable_tqdm": True, **more}
    return Trainer(model, TrainingArguments(folder, **options), train_dataset=ROWS)


@saving
@pytest.mark.parametrize("config", [{}, {"gates": "shared", "eval_gate": "expectation"}, {"layers": [1]}])
@pytest.mark.parametrize("save", [by_save_pretrained, by_shards, by_trainer, by_checkpoint])
def test_the_edits_are_loaded_from_the_models_folder(save, config, ids, tmp_path):
    model, edits = edited(**config)
    save(model, tmp_path / "saved")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "saved").eval()
    with edits.disable_adapter():
        assert torch.equal(logits(base, ids), logits(model, ids))
    loaded = headedit.load(base, tmp_path / "saved")
    assert torch.equal(logits(base, ids), logits(model, ids))
    assert (loaded.config, loaded.strength) == (edits.config, 0.7)


@saving
def test_the_edits_of_a_model_with_tied_weights_are_loaded(ids, tmp_path):
    model, _ = edited(tiny_model("llama", tie_word_embeddings=True))
    model.save_pretrained(tmp_path)
    base = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    headedit.load(base, tmp_path)
    assert torch.equal(logits(base, ids), logits(model, ids))


@saving
def test_hardened_edits_stay_hardened(ids, tmp_path):
    model, edits = edited()
    close(edits.module, [gate for gate in open_gates(edits.module) if gate.site == 0])
    edits.harden()
    model.save_pretrained(tmp_path)
    base = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    loaded = headedit.load(base, tmp_path)
    assert torch.equal(logits(base, ids), logits(model, ids))
    assert [edit.idle for edit in loaded.module] == [True, False]
    assert loaded.gate_parameters() == []


@saving
def test_of_several_adapters_the_active_one_is_loaded_and_the_others_are_named(ids, tmp_path):
    model, edits = edited()
    edits.add_adapter("second", EditConfig(vectors="scale"))
    edits.set_adapter("second")
    randomise(edits, seed=5)
    model.save_pretrained(tmp_path)
    base = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    with pytest.warns(UserWarning, match=r"default, second; 'second', the active one, is read.*load_state_dict"):
        headedit.load(base, tmp_path).detach()
    with pytest.warns(UserWarning, match="second"):
        headedit.load(base, tmp_path)
    assert torch.equal(logits(base, ids), logits(model, ids))
    whole = headedit.attach(fresh := tiny_model("llama"))
    fresh.load_state_dict(safetensors.torch.load_file(tmp_path / WEIGHTS_FILE))
    assert whole.adapters == ["default", "second"]


@saving
def test_the_edits_in_a_models_folder_are_shown_without_the_model(tmp_path):
    model, edits = edited()
    model.save_pretrained(tmp_path)
    assert torch.equal(read(tmp_path).gates().offset, edits.gates().offset)
    assert read_record(tmp_path)["base_model"]["model_type"] == "llama"


@saving
def test_only_a_model_of_the_same_shape_takes_them(tmp_path):
    edited()[0].save_pretrained(tmp_path)
    other = tiny_model("llama", num_hidden_layers=3)
    with pytest.raises(HeadEditError, match=r"made for another model.*num_hidden_layers: edits 2, model 3"):
        headedit.load(other, tmp_path)
    assert not hasattr(other, "headedit")


@saving
def test_edits_that_were_saved_while_merged_are_not_put_on_again(tmp_path):
    model, edits = edited(tiny_model("llama", attention_bias=True))
    edits.merge_adapter()
    model.save_pretrained(tmp_path)
    base = AutoModelForCausalLM.from_pretrained(tmp_path)
    with pytest.raises(HeadEditError, match=r"default was merged into its weights, so that the edits would act twice"):
        headedit.load(base, tmp_path)


def test_a_folder_of_a_model_without_edits_holds_none(llama, tmp_path):
    llama.save_pretrained(tmp_path)
    with pytest.raises(HeadEditError, match=r"holds no headedit\.safetensors, so there are no saved edits here"):
        headedit.load(llama, tmp_path)


def test_saving_a_model_with_edits_says_once_how_to_read_them(tmp_path):
    model, edits = edited()
    message = r"headedit\.load\(model, folder\).*edits\.save_pretrained\(folder\).*merge_and_unload\(\)"
    with pytest.warns(UserWarning, match=message) as caught:
        model.save_pretrained(tmp_path / "one")
    assert len(caught) == 1
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.state_dict()
        edits.save_pretrained(tmp_path / "edits")
        edits.detach().save_pretrained(tmp_path / "base")


@saving
def test_from_pretrained_names_the_keys_of_the_edits(tmp_path, monkeypatch):
    edited()[0].save_pretrained(tmp_path)
    said, handler = [], logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())
    logger = logging.getLogger("transformers")
    monkeypatch.setattr(logger, "handlers", [handler])
    monkeypatch.setattr(logger, "level", logging.WARNING)
    logger.manager._clear_cache()
    AutoModelForCausalLM.from_pretrained(tmp_path)
    logger.manager._clear_cache()
    assert any("headedit._extra_state" in text and "UNEXPECTED" in text for text in said)


def rewritten(folder, change):
    file = folder / WEIGHTS_FILE
    tensors = safetensors.torch.load_file(file)
    change(tensors)
    file.write_bytes(safetensors.torch.save(tensors, metadata={"format": "pt"}))


OFFSET = "headedit.default.site_edits.0.vectors.offset"
STATE = "headedit._extra_state"
DAMAGE = {
    "a tensor missing": (lambda t: t.pop(OFFSET), r"o_proj\.offset' is missing"),
    "another shape": (lambda t: t.update({OFFSET: t[OFFSET][:1].clone()}), r"has shape \(1, 16\)"),
    "not finite": (lambda t: t.update({OFFSET: t[OFFSET] * torch.nan}), r"holds NaN"),
    "no record": (lambda t: t.update({STATE: torch.zeros(8, dtype=torch.uint8)}), r"_extra_state: cannot be read"),
    "two records": (lambda t: t.update({f"a.{STATE}": t[STATE].clone()}), r"edits of 2 models"),
}


@saving
@pytest.mark.parametrize("what", DAMAGE)
def test_damaged_weights_are_refused_before_the_model_is_touched(what, llama, ids, tmp_path):
    change, message = DAMAGE[what]
    edited()[0].save_pretrained(tmp_path)
    rewritten(tmp_path, change)
    before = logits(llama, ids)
    with pytest.raises(HeadEditError, match=message):
        headedit.load(llama, tmp_path)
    assert torch.equal(logits(llama, ids), before)
    assert not hasattr(llama, "headedit")


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ("{", r"index\.json: cannot be read"),
        ("[]", r"'weight_map' is missing"),
        ('{"weight_map": {"headedit._extra_state": "../model.safetensors"}}', r"the name of a file in this folder"),
        ('{"weight_map": {"headedit._extra_state": "model.bin"}}', r"the name of a file in this folder"),
        ('{"weight_map": {"headedit._extra_state": 3}}', r"the name of a file in this folder"),
        ('{"weight_map": {"headedit._extra_state": "no.safetensors"}}', r"the edits in it cannot be read"),
    ],
)
def test_a_malicious_index_is_refused(index, message, llama, tmp_path):
    (tmp_path / INDEX_FILE).write_text(index)
    with pytest.raises(HeadEditError, match=message):
        headedit.load(llama, tmp_path)


def test_weights_that_are_no_safetensors_are_refused(llama, tmp_path):
    (tmp_path / WEIGHTS_FILE).write_bytes(b"x" * 100)
    with pytest.raises(HeadEditError, match=r"model\.safetensors: is not a safetensors file"):
        headedit.load(llama, tmp_path)
