"""``attach(model, draft=True)``: a type that no spec knows is drafted, proved on the model, and edited."""

import re

import pytest
import torch
from test_draft import with_projections
from test_invariants import snapshot
from test_probe import Toy, diffllama, state
from tiny import logits, tiny_model
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

import headedit
from headedit import HeadEditError
from headedit.edits.certificate import certificate_of
from headedit.hf.checkpointing import enable_checkpointing, is_checkpointing


class UnheardConfig(LlamaConfig):
    model_type = "unheard"


def unheard(**changes) -> LlamaForCausalLM:
    """A tiny Llama under a name that no spec knows."""
    torch.manual_seed(0)
    config = UnheardConfig(**{**tiny_model("llama").config.to_dict(), "model_type": "unheard", **changes})
    return LlamaForCausalLM(config).eval()


def scaled(edits: headedit.HeadEdits) -> headedit.HeadEdits:
    edits.set_head(1, 2, scale=0.0)
    return edits


def test_an_unknown_type_is_drafted_proved_and_edited(ids, capsys):
    model = unheard()
    base = logits(model, ids)
    edits = headedit.attach(model, draft=True)
    assert torch.equal(logits(model, ids), base)
    assert [(site.path, site.heads, site.head_dim) for site in edits.sites] == [
        (f"model.layers.{layer}.self_attn.o_proj", 4, 16) for layer in (0, 1)
    ]
    scaled(edits)
    known = tiny_model("llama")
    known.load_state_dict(unheard().state_dict())
    scaled(headedit.attach(known))
    assert torch.equal(logits(model, ids), logits(known, ids))
    assert torch.equal(logits(edits.detach(), ids), base)
    printed = capsys.readouterr().out
    assert "model_types:\n- unheard" in printed
    assert "LlamaForCausalLM: The spec holds." in printed
    assert "sites: 2 of 2 proved under eager, sdpa; 4 heads of width 16" in printed
    assert "decoding with a cache: equal" in printed


def test_edits_by_a_drafted_spec_are_loaded_without_drafting(ids, tmp_path):
    model = unheard()
    scaled(headedit.attach(model, draft=True)).save_pretrained(tmp_path)
    fresh = unheard()
    headedit.load(fresh, tmp_path)
    assert torch.equal(logits(fresh, ids), logits(model, ids))


def test_a_type_with_a_spec_is_not_drafted(llama, capsys):
    assert headedit.attach(llama, draft=True).spec.source.endswith("llama.yaml")
    assert capsys.readouterr().out == ""


def test_a_spec_that_is_given_is_taken_in_place_of_a_draft(tmp_path, capsys):
    path = tmp_path / "mine.yaml"
    path.write_text("model_types: [unheard]\nsites: {attention: {path: 'layers.{layer}.self_attn.o_proj', heads: 4}}")
    assert headedit.attach(unheard(), path, draft=True).spec.source == str(path)
    assert capsys.readouterr().out == ""


def test_a_draft_that_is_not_proved_is_refused_with_the_reason(capsys):
    model = diffllama()
    model.config.__class__ = type("Unheard", (type(model.config),), {"model_type": "unheard"})
    with pytest.raises(HeadEditError, match=r"'unheard', and the drafted one is not proved.*head \d moved .* by hand"):
        headedit.attach(model, draft=True)
    assert capsys.readouterr().out == ""
    assert not any("headedit" in module._modules for module in model.modules())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Toy("none"), "none can be drafted.*neither softmax"),
        (lambda: with_projections(Toy(), lambda width: nn.Identity()), "none can be drafted.*no module called after"),
        (lambda: Toy(order=(0, 2, 1, 3)), "not proved.*head 1 moved the coordinates 12-17"),
    ],
)
def test_a_model_that_cannot_be_drafted_is_left_as_it_was(make, message):
    model = make()
    model.config = UnheardConfig(vocab_size=50)
    before = state(model)
    with pytest.raises(HeadEditError, match=f"(?s){message}"):
        headedit.attach(model, draft=True)
    assert state(model) == before


def test_a_model_without_weights_is_not_drafted():
    with torch.device("meta"):
        model = unheard()
    with pytest.raises(HeadEditError, match="meta device and hold no values"):
        headedit.attach(model, draft=True)


@pytest.mark.parametrize("draft", [1, "my_arch.yaml", None])
def test_a_draft_argument_that_is_no_flag_is_refused(draft, llama):
    with pytest.raises(HeadEditError, match=r"draft: found .*expected True or False"):
        headedit.attach(llama, draft=draft)


def test_an_unknown_type_without_draft_is_told_of_it():
    with pytest.raises(HeadEditError, match=re.escape("headedit.attach(model, draft=True)")):
        headedit.attach(unheard())


def test_a_model_is_returned_to_its_state_by_drafting(ids):
    model = unheard()
    model.train()
    enable_checkpointing(model)
    before, generator = snapshot(model), torch.get_rng_state()
    edits = headedit.attach(model, draft=True)
    assert torch.equal(torch.get_rng_state(), generator)
    assert is_checkpointing(model)
    edits.detach()
    after = snapshot(model)
    assert (after["hooks"], after["parameters"]) == (before["hooks"], before["parameters"])
    assert model.training


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_model_in_low_precision_is_drafted(dtype):
    assert len(headedit.attach(unheard().to(dtype), draft=True).sites) == 2


def test_a_model_without_a_head_is_drafted():
    assert len(headedit.attach(unheard().model, draft=True).sites) == 2


def test_the_certificate_of_edits_that_change_the_logits_says_so(llama):
    def put_on():
        return scaled(headedit.attach(llama))

    certificate = certificate_of(llama, put_on)
    assert not certificate.ok
    assert "a fresh edit and its removal: not exact" in str(certificate)
    assert "problem: a fresh edit changes the logits" in str(certificate)
