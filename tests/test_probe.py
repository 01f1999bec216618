"""A head is proved to be where the spec says, and a spec that is wrong in any way is caught."""

import copy
import dataclasses
import re

import pytest
import torch
from tiny import COMMON, FACTS, tiny_model
from torch import nn
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, DiffLlamaConfig, LlamaConfig

import headedit
from headedit import HeadEditError
from headedit.specs import HeadSite, find_sites, find_spec
from headedit.specs.probe import SiteProof, prove_sites

HEADS, WIDTH = 4, 6


def site_at(model: nn.Module, path: str, heads: int, head_dim: int, kind: str = "attention") -> HeadSite:
    module = model.get_submodule(path)
    return HeadSite(layer=0, layers=1, kind=kind, path=path, name=path, heads=heads, head_dim=head_dim, module=module)


def prove(model: nn.Module, path: str, heads: int, head_dim: int, **options) -> SiteProof:
    (proof,) = prove_sites(model, [site_at(model, path, heads, head_dim)], **options)
    return proof


def said(proof: SiteProof) -> str:
    assert not proof.ok
    return "\n".join(proof.problems)


class Attention(nn.Module):
    """Attention whose heads go to the projection in any order, in one of the shapes that transformers knows."""

    def __init__(self, order: list[int], layout: str, mix: nn.Module):
        super().__init__()
        self.qkv = nn.Linear(HEADS * WIDTH, 3 * HEADS * WIDTH)
        self.o_proj = nn.Linear(HEADS * WIDTH, HEADS * WIDTH)
        self.order, self.layout, self.mix = order, layout, mix

    def forward(self, x):
        query, key, value = (y.unflatten(-1, (HEADS, WIDTH)).transpose(1, 2) for y in self.qkv(x).chunk(3, dim=-1))
        z = self.attend(query, key, value).transpose(1, 2)[:, :, self.order].flatten(2)  # [1, tokens, heads * width]
        return self.o_proj(self.mix(z))

    def attend(self, query, key, value):
        if self.layout == "sdpa":
            return F.scaled_dot_product_attention(query, key, value)
        scores = query @ key.transpose(-1, -2)
        match self.layout:
            case "method":
                return scores.softmax(-1) @ value
            case "grouped":
                return torch.softmax(scores.unflatten(1, (2, 2)), dim=-1).flatten(1, 2) @ value
            case "flattened":
                return F.softmax(scores.flatten(0, 1), dim=-1).unflatten(0, (1, HEADS)) @ value
            case "module":
                return nn.Softmax(dim=-1)(scores) @ value
        return (scores.relu() / scores.shape[-1]) @ value


class Toy(nn.Module):
    """Two layers of attention with a residual stream."""

    def __init__(self, layout: str = "sdpa", order: tuple[int, ...] = (0, 1, 2, 3), mix: nn.Module | None = None):
        super().__init__()
        torch.manual_seed(0)
        mix = mix or nn.Identity()
        self.embed = nn.Embedding(50, HEADS * WIDTH)
        self.layers = nn.ModuleList(Attention(list(order), layout, copy.deepcopy(mix)) for _ in range(2))
        self.config = LlamaConfig(vocab_size=50)

    def forward(self, input_ids):
        x = self.embed(input_ids)
        for layer in self.layers:
            x = x + layer(x)
        return x


@pytest.mark.parametrize("model_type", sorted(FACTS))
def test_the_heads_of_every_packaged_type_are_proved(model_type):
    model = tiny_model(model_type)
    before = model.config._attn_implementation
    switches = model._can_set_attn_implementation() and model._supports_sdpa
    for proof in prove_sites(model, find_sites(model, find_spec(model), ["attention"])):
        assert proof.ok, proof.problems
        assert proof.proved == (("eager", "sdpa") if switches else (before,))
        assert (proof.heads, proof.head_dim) == FACTS[model_type][2:]
    assert model.config._attn_implementation == before


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("factor", [0.5, 3.0])
def test_the_probe_allows_for_rounding(llama, dtype, factor):
    sites = find_sites(llama.to(dtype), find_spec(llama))
    assert all(proof.proved == ("eager", "sdpa") for proof in prove_sites(llama, sites, factor=factor))


@pytest.mark.parametrize("layout", ["sdpa", "method", "grouped", "flattened", "module"])
def test_the_probe_sees_attention_in_every_shape(layout):
    model = Toy(layout)
    proof = prove(model, "layers.1.o_proj", HEADS, WIDTH)
    assert proof.ok
    assert proof.proved == ("the model's attention",)
    assert not prove(model, "layers.1.o_proj", HEADS // 2, WIDTH * 2).ok


@pytest.mark.parametrize(
    ("heads", "head_dim", "message"),
    [
        (8, 8, r"eager, sdpa: the attention has 4 heads, but the spec says 8 heads of width 8\."),
        (8, 8, r"head 3 moved the coordinates 48-63: slots 6-7\."),
        (2, 32, r"head 3 moved the coordinates 48-63: slots 1\."),
        (16, 4, r"head 0 moved the coordinates 0-15: slots 0-3\."),
        (1, 64, r"the attention has 4 heads, but the spec says 1 heads of width 64"),
        (4, 8, r"given \(1, 11, 64\), but the spec says 4 heads of width 8, 32 in all"),
    ],
)
def test_wrong_numbers_of_heads_are_caught(llama, heads, head_dim, message):
    assert re.search(message, said(prove(llama, "model.layers.1.self_attn.o_proj", heads, head_dim)))


def test_permuted_slots_are_caught():
    text = said(prove(Toy(order=(0, 2, 1, 3)), "layers.0.o_proj", HEADS, WIDTH))
    assert "head 1 moved the coordinates 12-17: slots 2; the spec says slot 1, 6-11." in text
    assert "head 2 moved the coordinates 6-11: slots 1; the spec says slot 2, 12-17." in text
    assert "head 0" not in text


def test_a_norm_over_all_heads_is_caught():
    mixed = Toy(mix=nn.RMSNorm(HEADS * WIDTH))
    assert "head 0 moved the coordinates 0-23: slots 0-3; the spec says slot 0, 0-5." in said(
        prove(mixed, "layers.0.o_proj", HEADS, WIDTH)
    )
    assert prove(mixed, "layers.0.mix", HEADS, WIDTH).ok


def test_a_site_whose_head_is_not_scaled_is_caught():
    """What acts on each coordinate by itself keeps heads in their slots, but scaling does not pass through it."""
    text = said(prove(Toy(mix=nn.Tanh()), "layers.0.o_proj", HEADS, WIDTH, factor=-3.0))
    assert "head 0 moved slot 0, but did not scale it" in text


def test_a_head_that_shows_nothing_is_not_proved():
    model = Toy()
    with torch.no_grad():
        model.layers[0].qkv.weight[-WIDTH:] = 0
        model.layers[0].qkv.bias[-WIDTH:] = 0
    assert "head 3 changed nothing that can be seen" in said(prove(model, "layers.0.o_proj", HEADS, WIDTH))


@pytest.mark.parametrize(
    ("path", "heads", "head_dim", "message"),
    [
        ("self_attn.q_proj", 4, 8, "head 0 changed nothing that can be seen"),
        ("mlp.down_proj", 4, 12, r"not probed: neither softmax .* ran over heads inside model\.layers\.0\.mlp"),
    ],
)
def test_a_path_to_the_wrong_module_is_caught(llama, path, heads, head_dim, message):
    assert re.search(message, said(prove(llama, f"model.layers.0.{path}", heads, head_dim)))


def test_a_path_to_the_vision_tower_is_caught():
    model = tiny_model("gemma3")
    path = next(n for n, _ in model.named_modules() if "vision" in n and n.endswith("layers.0.self_attn.out_proj"))
    assert "not probed: the module was never called" in said(prove(model, path, 4, 8))


def diffllama() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(DiffLlamaConfig(**COMMON, head_dim=8)).eval()


def test_the_heads_of_diffllama_are_pairs():
    """Each slot is the difference of two attention heads behind a norm: read as four heads it fits, and is wrong."""
    path = "model.layers.0.self_attn.o_proj"
    text = said(prove(diffllama(), path, 4, 8))
    assert "eager, sdpa: head 3 moved the coordinates 16-31: slots 2-3; the spec says slot 3, 24-31." in text
    proof = prove(diffllama(), path, 2, 16)
    assert proof.ok
    assert proof.proved == ("eager", "sdpa")
    assert "slot 1 holds the attention heads 1, 3 together" in proof.notes[1]


@pytest.mark.parametrize(("layout", "kind"), [("none", "attention"), ("sdpa", "mlp")])
def test_where_no_head_can_be_scaled_nothing_is_proved(layout, kind):
    model = Toy(layout)
    (proof,) = prove_sites(model, [site_at(model, "layers.0.o_proj", HEADS, WIDTH, kind)])
    assert (proof.ok, proof.probed, proof.proved) == (False, False, ())
    assert "not probed: " in said(proof)


def test_one_wrong_site_does_not_change_the_proof_of_another(llama):
    wrong = site_at(llama, "model.layers.0.self_attn.o_proj", 8, 8)
    sites = [wrong, *find_sites(llama, find_spec(llama))[1:], site_at(llama, "model.layers.1.self_attn.q_proj", 4, 8)]
    assert [proof.ok for proof in prove_sites(llama, sites)] == [False, True, False]


def state(model: nn.Module) -> list[object]:
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_forward_hooks_always_called", "_forward_pre_hooks_with_kwargs")
    return [(m.training, *(dict(getattr(m, hook)) for hook in hooks)) for m in model.modules()]


@pytest.mark.parametrize("fails", [False, True])
def test_a_probed_model_is_returned_to_its_state(llama, fails):
    llama.set_attn_implementation("sdpa")
    llama.train()
    llama.model.layers[0].eval()
    weights = {name: value.clone() for name, value in llama.state_dict().items()}
    before, generator = state(llama), torch.get_rng_state()
    sites = find_sites(llama, find_spec(llama))
    if fails:
        with pytest.raises(HeadEditError, match=r"cannot run on input_ids \(1, 1\).*Give input_ids"):
            prove_sites(llama, sites, input_ids=torch.tensor([[10**6]]))
    else:
        assert all(proof.ok for proof in prove_sites(llama, sites))
    assert state(llama) == before
    assert llama.config._attn_implementation == "sdpa"
    assert all(torch.equal(value, weights[name]) for name, value in llama.state_dict().items())
    assert torch.equal(torch.get_rng_state(), generator)


def test_attached_edits_do_not_hide_the_heads(llama):
    edits = headedit.attach(llama)
    edits.set_head(0, 1, scale=0.0)
    assert all(proof.ok for proof in prove_sites(llama, edits.sites))


@pytest.mark.parametrize("factor", [0.0, 1.0, float("nan")])
def test_a_factor_that_shows_nothing_is_refused(llama, factor):
    with pytest.raises(HeadEditError, match=r"factor: found .* expected a number other than 0 and 1"):
        prove_sites(llama, find_sites(llama, find_spec(llama)), factor=factor)


def test_a_site_of_another_model_is_refused(llama):
    other = tiny_model("llama")
    with pytest.raises(HeadEditError, match=r"layers\.0\.self_attn\.o_proj: the site is of another model"):
        prove_sites(llama, find_sites(other, find_spec(other)))


def test_a_module_that_is_not_a_transformers_model_needs_input_ids():
    model = Toy()
    del model.config
    with pytest.raises(HeadEditError, match=r"Expected a transformers model with config\.model_type, found Toy"):
        prove(model, "layers.0.o_proj", HEADS, WIDTH)
    assert prove(model, "layers.0.o_proj", HEADS, WIDTH, input_ids=torch.arange(9)[None]).ok


def test_a_proof_is_ok_only_where_something_was_probed():
    proof = SiteProof(path="x", heads=1, head_dim=1, probed=False, proved=(), problems=())
    assert not proof.ok
    assert dataclasses.replace(proof, probed=True).ok
