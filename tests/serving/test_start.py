"""The start of an engine: what cannot be served is refused by name, before anything is built."""

import pytest
from tiny_models import SIZES, save_edits, save_model
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from headedit import HeadEditError
from headedit.serving.vllm.slots import EditSlots


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("start")
    save_model("llama", folder / "model")
    model = AutoModelForCausalLM.from_pretrained(folder / "model")
    save_edits(model, folder / "edits", ["a", "b"])
    return folder


def config_of(model, **options):
    from vllm.engine.arg_utils import EngineArgs

    common = {"skip_tokenizer_init": True, "max_model_len": 128, "max_num_seqs": 8}
    return EngineArgs(model=str(model), **{**common, **options}).create_engine_config()


def test_without_edits_vllm_is_as_it_was(folder, monkeypatch):
    monkeypatch.delenv("HEADEDIT_EDITS", raising=False)
    assert config_of(folder / "model").lora_config is None


def test_with_edits_the_model_stays_compiled(folder, monkeypatch):
    monkeypatch.delenv("HEADEDIT_EDITS", raising=False)
    plain = config_of(folder / "model")
    monkeypatch.setenv("HEADEDIT_EDITS", str(folder / "edits"))
    monkeypatch.setenv("HEADEDIT_SLOTS", "5")
    config = config_of(folder / "model")
    assert isinstance(config.lora_config, EditSlots)
    assert [edit.name for edit in config.lora_config.edits] == ["a", "b"]
    assert config.lora_config.max_loras == 5
    assert config.compilation_config.mode == plain.compilation_config.mode
    assert config.compute_hash() != plain.compute_hash()  # a compiled model without edits is not taken from the cache


REFUSED = {
    "a LoRA": ({"enable_lora": True}, "LoRA adapters"),
    "too few tokens for drafts": (
        {
            "speculative_config": {"method": "ngram", "num_speculative_tokens": 30, "prompt_lookup_max": 2},
            "max_num_batched_tokens": 128,
        },
        "max-num-batched-tokens",
    ),
    "several replicas": ({"data_parallel_size": 2}, "data-parallel-size"),
    "pipeline stages": ({"pipeline_parallel_size": 2}, "pipeline-parallel-size"),
    "fast prefill": ({"kv_sharing_fast_prefill": True}, "kv-sharing-fast-prefill"),
    "a store of keys and values": (
        {"kv_transfer_config": {"kv_connector": "ExampleConnector", "kv_role": "kv_both"}},
        "kv-transfer-config",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_setting_with_which_edits_are_not_served_is_named(what, folder, monkeypatch):
    options, message = REFUSED[what]
    monkeypatch.setenv("HEADEDIT_EDITS", str(folder / "edits"))
    with pytest.raises(HeadEditError, match=message):
        config_of(folder / "model", **options)


def test_an_architecture_that_was_not_compared_is_refused_with_the_way_out(tmp_path, monkeypatch):
    sizes = {"vocab_size": 128, "n_embd": 128, "n_layer": 2, "n_head": 4, "n_positions": 128}
    AutoModelForCausalLM.from_config(CONFIG_MAPPING["gpt2"](**sizes)).save_pretrained(tmp_path / "model")
    monkeypatch.setenv("HEADEDIT_EDITS", "")
    with pytest.raises(HeadEditError, match=r"GPT2LMHeadModel.*headedit merge"):
        config_of(tmp_path / "model")


def test_edits_of_another_model_are_refused(folder, tmp_path, monkeypatch):
    smaller = CONFIG_MAPPING["llama"](**{**SIZES, "num_hidden_layers": 1})
    AutoModelForCausalLM.from_config(smaller).save_pretrained(tmp_path / "model")
    monkeypatch.setenv("HEADEDIT_EDITS", str(folder / "edits"))
    with pytest.raises(HeadEditError, match="num_hidden_layers"):
        config_of(tmp_path / "model")


@pytest.mark.parametrize("entries", ["{0}/none", "{0}/edits:{0}/other/edits", "x={0}/model"])
def test_folders_that_name_no_edits_or_one_name_twice_are_refused(entries, folder, monkeypatch):
    model = AutoModelForCausalLM.from_pretrained(folder / "model")
    save_edits(model, folder / "other" / "edits", ["a"])
    monkeypatch.setenv("HEADEDIT_EDITS", entries.format(folder))
    with pytest.raises(HeadEditError):
        config_of(folder / "model")
