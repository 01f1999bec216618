"""A spec is drafted from a traced forward pass; the probe says whether it is right."""

import pytest
import torch
from test_cli import run
from test_probe import HEADS, WIDTH, Toy, diffllama, state
from torch import nn
from zoo import ZOO, zoo_model

import headedit
from headedit import HeadEditError
from headedit.specs import find_sites, read_spec
from headedit.specs.draft import Draft, draft_spec

VARIED = [
    "llama",  # head_dim is not hidden size / heads
    "gpt2",  # Conv1D
    "gpt_neox",
    "gpt_neo",
    "opt",
    "bloom",
    "falcon",
    "mpt",
    "gptj",
    "phi",
    "bert",  # the projection stands beside the module in which attention runs
    "roformer",
    "bart",
    "xglm",
    "ctrl",
    "xlm",
    "bitnet",  # the site is a norm before the projection
    "deepseek_v3",  # values narrower than queries
    "deepseek_v4",  # a grouped projection
    "longcat_flash",  # two attentions a layer
    "hrm_text",  # two stacks
    "gemma4",  # widths differ by layer, and there is a vision tower
    "laguna",  # numbers of heads differ by layer
    "dots3_note",
    "qwen3_next",
    "bamba",
    "nemotron_h",
    "falcon_h1",
    "recurrent_gemma",
    "kimi_linear",  # linear mixers whose projection has the same name
    "zamba",  # weights shared by layers
    "moshi",
    "modernbert-decoder",
]


class Plain(nn.Module):
    """A projection that does not tell its input width."""

    def __init__(self, width: int):
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(width, width))

    def forward(self, x):
        return x @ self.kernel


def with_projections(model: Toy, make) -> Toy:
    for layer in model.layers:
        layer.o_proj = make(HEADS * WIDTH)
    return model


def reread(draft: Draft, folder) -> None:
    file = folder / "drafted.yaml"
    file.write_text(draft.yaml, encoding="utf-8")
    assert read_spec(file) == draft.spec


def attention_rule(draft: Draft) -> dict[str, object]:
    return draft.spec.to_dict()["sites"]["attention"]


@pytest.mark.parametrize("model_type", VARIED)
def test_the_draft_finds_the_sites_of_the_facts(model_type, tmp_path):
    model = zoo_model(model_type)
    draft = draft_spec(model)
    assert draft.ok, [proof.problems for proof in draft.proofs]
    assert draft.spec.model_types == [model.config.model_type]
    sites = find_sites(model, draft.spec)
    assert sorted((site.path, site.heads, site.head_dim) for site in sites) == sorted(ZOO[model_type].sites)
    assert [proof.path for proof in draft.proofs] == [site.path for site in sites]
    reread(draft, tmp_path)


@pytest.mark.parametrize(
    ("model_type", "rule"),
    [
        ("llama", {"path": "layers.{layer}.self_attn.o_proj", "heads": "num_attention_heads"}),
        ("bart", {"path": "layers.{layer}.self_attn.out_proj", "heads": "decoder_attention_heads"}),
        ("laguna", {"path": "layers.{layer}.self_attn.o_proj", "heads": "num_attention_heads_per_layer"}),
        (
            "kimi_linear",
            {
                "path": "layers.{layer}.self_attn.o_proj",
                "heads": "num_attention_heads",
                "layer_types": ["full_attention"],
            },
        ),
        (
            "deepseek_v4",
            {"path": "layers.{layer}.self_attn.o_a_proj", "heads": "num_attention_heads", "groups": "o_groups"},
        ),
        (
            "hrm_text",
            [
                {"path": f"{stack}_module.layers.{{layer}}.self_attn.o_proj", "heads": "num_attention_heads"}
                for stack in "HL"
            ],
        ),
    ],
)
def test_the_rule_of_a_draft_reads_as_a_person_would_write_it(model_type, rule):
    found = attention_rule(draft_spec(zoo_model(model_type)))
    assert (sorted(found, key=lambda r: r["path"]) if isinstance(found, list) else found) == rule


def test_the_comment_of_a_draft_says_how_it_was_drafted():
    first, second, *_ = draft_spec(zoo_model("llama")).yaml.splitlines()
    assert first == "# LlamaForCausalLM: drafted by headedit from a traced forward pass."
    assert "2 of 2 sites are proved (eager, sdpa)." in second


@pytest.mark.parametrize("layout", ["sdpa", "method", "grouped", "flattened", "module"])
def test_an_unknown_architecture_is_drafted(layout, tmp_path):
    draft = draft_spec(Toy(layout), input_ids=torch.arange(9)[None])
    assert draft.ok
    assert attention_rule(draft) == {"path": "layers.{layer}.o_proj", "heads": HEADS}
    reread(draft, tmp_path)


def test_heads_are_named_by_an_attribute_where_the_config_has_none():
    model = Toy()
    for layer in model.layers:
        layer.num_heads = HEADS
    draft = draft_spec(model)
    assert draft.ok
    assert attention_rule(draft)["heads"] == {"module": "num_heads"}


def test_the_site_is_before_a_norm_over_all_heads():
    draft = draft_spec(Toy(mix=nn.RMSNorm(HEADS * WIDTH)))
    assert draft.ok
    assert attention_rule(draft)["path"] == "layers.{layer}.mix"


@pytest.mark.parametrize(("config_width", "expected"), [(WIDTH, "head_dim"), (WIDTH + 1, WIDTH)])
def test_the_draft_gives_a_width_that_the_module_does_not(config_width, expected):
    model = with_projections(Toy(), Plain)
    model.config.head_dim = config_width
    draft = draft_spec(model)
    assert draft.ok
    assert attention_rule(draft)["head_dim"] == expected


def test_the_draft_names_only_the_layers_with_attention():
    class Mixer(nn.Module):
        def __init__(self):
            super().__init__()
            self.o_proj = nn.Linear(HEADS * WIDTH, HEADS * WIDTH)

        def forward(self, x):
            return self.o_proj(x)

    model = Toy()
    model.layers.append(Mixer())
    draft = draft_spec(model)
    assert draft.ok
    assert len(draft.proofs) == 2
    assert attention_rule(draft)["parent_class"] == "Attention"


@pytest.mark.parametrize("make", [lambda: Toy(order=(0, 2, 1, 3)), lambda: Toy(mix=nn.Tanh()), diffllama])
def test_a_draft_whose_heads_are_not_in_their_slots_is_not_ok(make, tmp_path):
    draft = draft_spec(make())
    assert not draft.ok
    assert all(proof.problems for proof in draft.proofs)
    assert "0 of 2 sites are proved (no attention)" in draft.yaml
    reread(draft, tmp_path)


@pytest.mark.parametrize("make", [lambda: Toy("none"), lambda: zoo_model("mamba")])
def test_a_model_without_attention_cannot_be_drafted(make):
    with pytest.raises(HeadEditError, match=r"neither softmax nor .* einsum .* Write the spec by hand"):
        draft_spec(make())


def test_attention_that_no_module_takes_is_named():
    model = with_projections(Toy(), lambda width: nn.Identity())
    with pytest.raises(HeadEditError, match=r"attention ran inside layers\.0 \(4 heads\).*no module called after"):
        draft_spec(model)


def test_layers_that_differ_are_listed_one_by_one():
    with pytest.raises(HeadEditError, match=r"layers differ \(layer 0: 2, layer 1: 4\).*with by_layer_type"):
        draft_spec(zoo_model("inkling_text"))


@pytest.mark.parametrize("fails", [False, True])
def test_a_drafted_model_is_returned_to_its_state(llama, fails):
    llama.set_attn_implementation("sdpa")
    llama.train()
    before, generator = state(llama), torch.get_rng_state()
    if fails:
        with pytest.raises(HeadEditError, match=r"cannot run on input_ids \(1, 1\)"):
            draft_spec(llama, input_ids=torch.tensor([[10**6]]))
    else:
        assert draft_spec(llama).ok
    assert state(llama) == before
    assert llama.config._attn_implementation == "sdpa"
    assert torch.equal(torch.get_rng_state(), generator)


def test_spec_draft_writes_a_spec_only_when_it_is_proved(tmp_path, capsys):
    model = zoo_model("gpt2")
    model.save_pretrained(tmp_path / "gpt2")
    assert run("spec", "draft", tmp_path / "gpt2", "--output", tmp_path / "gpt2.yaml") == 0
    assert (tmp_path / "gpt2.yaml").read_text() in capsys.readouterr().out
    assert len(headedit.attach(model, spec=tmp_path / "gpt2.yaml").sites) == 2
    assert run("spec", "check", tmp_path / "gpt2", "--spec", tmp_path / "gpt2.yaml") == 0
    zoo_model("diffllama").save_pretrained(tmp_path / "diffllama")
    arguments = ["spec", "draft", tmp_path / "diffllama", "--output", tmp_path / "d.yaml"]
    assert run(*arguments) == 2
    captured = capsys.readouterr()
    assert "head 3 moved the coordinates 32-63" in " ".join(captured.out.split())
    assert "is not written" in captured.err
    assert not (tmp_path / "d.yaml").exists()
    assert run(*arguments, "--force") == 0
    assert (tmp_path / "d.yaml").is_file()
