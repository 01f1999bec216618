"""A spec applied to a live model gives the sites that are really there."""

import re

import pytest
import torch
from tiny import FACTS, tiny_model
from torch import nn
from transformers import LlamaConfig, PreTrainedModel

import headedit
from headedit import HeadEditError
from headedit.io.strict import build
from headedit.specs import Spec, find_sites, find_spec


def spec_of(**sites) -> Spec:
    return build(Spec, {"model_types": ["llama"], **sites}, "test.yaml")


def attention(**rule) -> Spec:
    return spec_of(sites={"attention": {"path": "layers.{layer}.self_attn.o_proj", "heads": 4, **rule}})


@pytest.mark.parametrize("model_type", sorted(FACTS))
def test_the_sites_of_every_packaged_type_are_found(model_type):
    _, path, heads, head_dim = FACTS[model_type]
    model = tiny_model(model_type)
    sites = find_sites(model, find_spec(model))
    assert [site.path for site in sites] == [path, path.replace(".0.", ".1.", 1)]
    assert [(site.layer, site.heads, site.head_dim) for site in sites] == [(0, heads, head_dim), (1, heads, head_dim)]
    assert all(model.get_submodule(site.path) is site.module for site in sites)
    assert all(path.endswith("." + site.name) for path, site in zip([s.path for s in sites], sites, strict=True))


@pytest.mark.parametrize(
    "source",
    [
        4,
        "num_attention_heads",
        {"value": 4},
        {"config": "num_attention_heads"},
        {"config": "per_layer"},
        {"module": "heads_of_mine"},
        {"value": 8, "divide": 2},
        {"value": 2, "times": 2},
        {"by_layer_type": {"even": 4, "odd": "num_attention_heads"}},
    ],
)
def test_the_number_of_heads_can_be_given_in_every_way(llama, source):
    llama.config.per_layer = [4, 4]
    llama.config.layer_types = ["even", "odd"]
    for layer in llama.model.layers:
        layer.self_attn.heads_of_mine = 4
    assert [site.heads for site in find_sites(llama, attention(heads=source))] == [4, 4]


def test_the_number_of_heads_may_differ_by_layer(llama):
    llama.config.per_layer = [4, 8]
    assert [(s.heads, s.head_dim) for s in find_sites(llama, attention(heads="per_layer"))] == [(4, 16), (8, 8)]


def test_a_layers_own_config_comes_first(llama):
    llama.config.per_layer_config = {1: {"num_attention_heads": 8}}
    with pytest.raises(RuntimeError):
        _ = llama.config.num_attention_heads
    assert [s.heads for s in find_sites(llama, attention(heads="num_attention_heads"))] == [4, 8]


def test_a_config_that_raises_counts_as_absent(llama):
    class Raising(LlamaConfig):
        @property
        def wide(self):
            raise RuntimeError("differs by layer")

    llama.config.__class__ = Raising
    assert [s.head_dim for s in find_sites(llama, attention(head_dim="wide"))] == [16, 16]


def test_a_rule_chooses_layers_by_type_and_by_class(llama):
    llama.config.layer_types = ["linear_attention", "full_attention"]
    assert [s.layer for s in find_sites(llama, attention(layer_types=["full_attention"]))] == [1]
    assert len(find_sites(llama, attention(parent_class="*Attention"))) == 2
    with pytest.raises(HeadEditError, match="no module of this LlamaForCausalLM is a attention site"):
        find_sites(llama, attention(parent_class="*Mamba*"))


def test_several_sites_per_layer_are_listed_side_by_side(llama):
    rules = [{"path": f"layers.{{layer}}.self_attn.{name}", "heads": 4} for name in ("o_proj", "q_proj")]
    sites = find_sites(llama, spec_of(sites={"attention": rules}))
    assert [(s.layer, s.name[-6:]) for s in sites] == [(0, "o_proj"), (0, "q_proj"), (1, "o_proj"), (1, "q_proj")]


def test_a_norm_can_be_a_site(llama):
    rule = {"path": "layers.{layer}.input_layernorm", "heads": 4, "position": "gated"}
    site = find_sites(llama, spec_of(sites={"linear": rule}), ["linear"])[0]
    assert (site.kind, site.heads, site.head_dim, site.position) == ("linear", 4, 8, "gated")


def test_a_projection_that_takes_groups_one_by_one_is_a_site():
    """The module's own input size is a group's; the edit sees all heads, in the shape they come in."""
    model = tiny_model("llama")
    for layer in model.model.layers:
        layer.self_attn.o_proj = nn.Linear(32, 16, bias=False)
    with pytest.raises(HeadEditError, match=r"4 heads of width 16 make 64, but the module .* takes 32 inputs"):
        find_sites(model, attention(head_dim=16))
    site = find_sites(model, attention(head_dim=16, groups={"value": 2}))[0]
    assert (site.heads, site.head_dim, site.width) == (4, 16, 64)
    grouped = torch.randn(2, 5, 2, 32)
    edits = headedit.attach(model, spec=attention(head_dim=16, groups=2))
    edits.set_head(0, 1, scale=0.0)
    seen = edits.module.site_edits[0](grouped).view(2, 5, 4, 16)
    assert (seen[:, :, 1] == 0).all()
    assert torch.equal(seen[:, :, [0, 2, 3]], grouped.view(2, 5, 4, 16)[:, :, [0, 2, 3]])


class TwoTowers(PreTrainedModel):
    config_class = LlamaConfig

    def __init__(self):
        super().__init__(LlamaConfig(num_attention_heads=4))
        self.text, self.vision = tiny_model("llama").model, tiny_model("llama").model


def test_a_spec_of_two_towers_needs_a_root():
    model = TwoTowers()
    with pytest.raises(HeadEditError, match=r"below several modules: text, vision.*'root'"):
        find_sites(model, attention())
    rooted = spec_of(root="text", sites={"attention": {"path": "layers.{layer}.self_attn.o_proj", "heads": 4}})
    assert [s.path for s in find_sites(model, rooted)] == [f"text.layers.{i}.self_attn.o_proj" for i in (0, 1)]
    model.get_decoder = lambda: model.vision
    assert find_sites(model, attention())[0].path == "vision.layers.0.self_attn.o_proj"


def test_the_names_of_sites_do_not_change_when_the_model_is_wrapped(llama):
    plain = find_sites(llama, find_spec(llama))
    wrapped = nn.Module()
    wrapped.inner, wrapped.config = llama, llama.config
    inside = find_sites(wrapped, find_spec(llama))
    assert [s.name for s in inside] == [s.name for s in plain]
    assert [s.path for s in inside] == ["inner." + s.path for s in plain]


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({"path": "layers.{layer}.self_attn.oproj"}, r"Did you mean 'layers\.\{layer\}\.self_attn\.o_proj'"),
        ({"heads": 5}, r"64 inputs do not divide into 5 heads"),
        ({"heads": 4, "head_dim": 8}, r"4 heads of width 8 make 32, but the module \(Linear\) takes 64 inputs"),
        ({"heads": "number_of_heads"}, r"heads: the config has no value for 'number_of_heads'"),
        ({"heads": {"module": "nheads"}}, r"LlamaAttention has no attribute 'nheads'"),
        ({"heads": "rms_norm_eps"}, r"found 1e-06, expected a whole number"),
        ({"heads": {"value": 3, "divide": 2}}, r"3 \* 1 / 2 is not a whole number above 0"),
        ({"heads": {"by_layer_type": {"full": 4}}}, r"lists no type for layer 0"),
    ],
)
def test_a_rule_that_does_not_fit_says_why(llama, rule, message):
    with pytest.raises(HeadEditError, match=message) as caught:
        find_sites(llama, attention(**rule))
    assert "spec" in str(caught.value)


def test_a_refused_model_gets_the_reason_of_the_spec():
    conditional = {"reason": "the module is bypassed.", "when": {"pretraining_tp": ">1", "attention_bias": False}}
    spec = spec_of(refuse=[conditional], sites={"attention": {"path": "layers.{layer}.self_attn.o_proj", "heads": 4}})
    assert len(find_sites(tiny_model("llama"), spec)) == 2
    message = re.escape("llama with pretraining_tp=2, attention_bias=False cannot be edited: the module is bypassed.")
    with pytest.raises(HeadEditError, match=message):
        find_sites(tiny_model("llama", pretraining_tp=2), spec)
    with pytest.raises(HeadEditError, match=r"The model type llama cannot be edited: no heads"):
        find_sites(tiny_model("llama"), spec_of(refuse=[{"reason": "no heads."}]))


def test_one_site_named_twice_is_refused(llama):
    rule = {"path": "layers.{layer}.self_attn.o_proj", "heads": 4}
    with pytest.raises(HeadEditError, match="is named by two rules"):
        find_sites(llama, spec_of(sites={"attention": [rule, rule]}))


def test_a_kind_of_site_that_the_spec_does_not_have_is_refused(llama):
    with pytest.raises(HeadEditError, match="has no sites of kind 'linear'; it has attention"):
        headedit.attach(llama, config=headedit.EditConfig(sites=["linear"]))


def test_a_stack_of_layers_may_be_the_model_itself(llama):
    stack = llama.model.layers
    stack.config = llama.config
    sites = find_sites(stack, spec_of(sites={"attention": {"path": "{layer}.self_attn.o_proj", "heads": 4}}))
    assert [(s.layer, s.layers, s.path) for s in sites] == [(i, 2, f"{i}.self_attn.o_proj") for i in (0, 1)]


def test_the_number_of_layers_counts_those_without_a_site(llama):
    llama.config.layer_types = ["full_attention", "linear_attention"]
    (site,) = find_sites(llama, attention(layer_types=["full_attention"]))
    assert (site.layer, site.layers) == (0, 2)
