"""Certificates and the doctor: what holds is said to hold, what does not is named, and the model comes back."""

import re

import pytest
import torch
from test_cli import run
from test_invariants import snapshot
from tiny import FACTS, logits
from transformers import AutoTokenizer

import headedit
from headedit import HeadEditError
from headedit.checks.certificate import certify
from headedit.checks.doctor import doctor
from headedit.demo import MODEL_FOLDER
from headedit.specs import tiny
from headedit.specs.tiny import tiny_configs, tiny_model


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "qwen3_next", "gemma2", "deepseek_v3", "xlstm", "musicgen"])
def test_a_spec_that_holds_gets_its_certificate(model_type):
    certificate = certify(tiny_model(model_type))
    assert certificate.ok, certificate.problems
    assert certificate.exact
    assert certificate.verdict == "The spec holds."
    assert certificate.checkpointing in ("equal", "not offered by transformers")
    assert certificate.cache == "equal" or certificate.cache.startswith("not compared (")
    assert all(proof.proved for proof in certificate.proofs)


def test_a_certified_model_is_returned_to_its_state(llama, ids):
    before, base = snapshot(llama), logits(llama, ids)
    llama.train()
    certify(llama)
    assert llama.training
    llama.eval()
    assert torch.equal(logits(llama, ids), base)
    assert snapshot(llama)["hooks"] == before["hooks"]
    assert snapshot(llama)["parameters"] == before["parameters"]


def test_a_model_of_few_words_is_checked_on_ids_that_it_has():
    from headedit.hf.loading import load_model

    model = load_model(str(MODEL_FOLDER), device="cpu")  # 39 words
    state = torch.get_rng_state()
    assert certify(model).ok
    assert torch.equal(torch.get_rng_state(), state)


def test_gradients_that_change_with_recomputation_are_found(llama):
    factors = iter([1.0, *[1.001] * 10])

    def drift(module, args):
        return (next(factors) * args[0],) if module.training else args

    llama.model.layers[1].mlp.register_forward_pre_hook(drift)
    assert certify(llama).problems == ["gradients: differ"]


def test_linear_and_attention_sites_are_certified_together():
    certificate = certify(tiny_model("kimi_linear"), kinds=["attention", "linear"])
    assert certificate.ok
    assert {site.kind for site in certificate.sites} == {"attention", "linear"}


@pytest.fixture
def wrong(tmp_path):
    path = tmp_path / "wrong.yaml"
    path.write_text("model_types: [llama]\nsites: {attention: {path: 'layers.{layer}.self_attn.o_proj', heads: 8}}")
    return path


def test_a_spec_that_does_not_hold_is_refused_with_what_went_where(llama, wrong):
    certificate = certify(llama, wrong)
    assert not certificate.ok
    assert certificate.verdict == "The spec does not hold."
    assert any("head 3 moved the coordinates 48-63: slots 6-7" in problem for problem in certificate.problems)


def test_a_spec_that_cannot_be_probed_is_not_certified():
    certificate = certify(tiny_model("minimax"), kinds=["linear"])
    assert not certificate.ok
    assert certificate.verdict == "The spec could not be proved."


def test_spec_check_takes_a_type_a_folder_or_a_spec_file(wrong, tmp_path, capsys):
    assert run("spec", "check", "gpt2") == 0
    printed = capsys.readouterr().out
    assert "eager, sdpa" in printed
    assert "The spec holds." in printed
    assert run("spec", "check", "llama", "--spec", wrong) == 1
    assert "The spec does not hold." in capsys.readouterr().out
    tiny_model("qwen3").save_pretrained(tmp_path / "model")
    assert run("spec", "check", tmp_path / "model") == 0
    assert "Qwen3ForCausalLM" in capsys.readouterr().out
    assert run("spec", "check", "lama") == 2
    assert run("spec", "check") == 2
    assert "Give a model or a type to check" in capsys.readouterr().err


def test_spec_check_all_checks_every_type(monkeypatch, capsys):
    models = {t: tiny_model(t) for t in ("llama", "mamba", "falcon")}
    monkeypatch.setattr(tiny, "tiny_configs", lambda: models)
    monkeypatch.setattr(tiny, "tiny_model", models.__getitem__)
    assert run("spec", "check", "--all") == 0
    printed = re.sub(r"\s+", " ", capsys.readouterr().out)
    for line in ("proved under eager and sdpa │ 1 │ llama", "refused │ 1 │ mamba", "proved under sdpa │ 1 │ falcon"):
        assert line in printed


def test_a_type_that_cannot_be_built_is_an_error():
    with pytest.raises(HeadEditError, match=r"no tiny config of the type 'lama'\. Did you mean 'llama'\?"):
        tiny_model("lama")
    with pytest.raises(HeadEditError, match=r"transformers cannot build a tiny gemma4_assistant .*Give a folder"):
        tiny_model("gemma4_assistant")


def test_the_doctor_shows_what_attach_would_change(llama, ids, capsys, tmp_path):
    before, base = snapshot(llama), logits(llama, ids)
    found = dict(doctor(llama))
    assert snapshot(llama) == before
    assert torch.equal(logits(llama, ids), base)
    heads, width = FACTS["llama"][2:]
    assert found["attach would edit"] == f"2 of 2 layers: {heads} heads of width {width}"
    assert found["parameters"].startswith("272 to train")
    assert "torch" in found["versions"]
    assert found["an offset merges"] == "yes, by attention_bias=True"
    assert "mlp" in found["other sites"]
    assert dict(doctor(tiny_model("qwen3_next").to(torch.bfloat16)))["dtype"].startswith("bfloat16")
    with torch.device("meta"):
        hollow = type(llama)(llama.config)
    assert "hold no values" in dict(doctor(hollow))["will not work"]
    assert run("doctor", MODEL_FOLDER, "--device", "cpu") == 0
    assert "1,088 to train" in capsys.readouterr().out
    AutoTokenizer.from_pretrained(MODEL_FOLDER).save_pretrained(tmp_path)
    tiny_model("mamba").save_pretrained(tmp_path)
    assert run("doctor", tmp_path) == 2
    assert "cannot be edited: its mixer is channel-wise" in capsys.readouterr().err


def test_a_model_that_looks_ahead_is_refused():
    config = {**tiny_configs()["bert"], "is_decoder": False}
    with pytest.raises(HeadEditError, match="bert with is_decoder=False cannot be edited: it looks at later tokens"):
        headedit.attach(tiny_model("bert", config))
