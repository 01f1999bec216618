"""Every causal-LM type of transformers: its sites are found where they are, and editing them is exact."""

import copy
import dataclasses

import pytest
import torch
import transformers
from image_text import IMAGE_TEXT
from tiny import randomise
from transformers import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
from zoo import WITH_HEADS, WITHOUT_HEADS, ZOO, zoo_ids, zoo_model

import headedit
from headedit import EditConfig, HeadEditError
from headedit.edits.passes import Passes
from headedit.io.strict import build
from headedit.specs import Spec, packaged_specs
from headedit.specs.probe import prove_sites
from headedit.specs.tiny import tiny_configs


def logits(model, ids):
    torch.manual_seed(0)  # reformer draws its hashes
    with torch.no_grad():
        return model(input_ids=ids, use_cache=False).logits


@pytest.mark.parametrize("model_type", WITH_HEADS)
def test_the_sites_of_a_type_match_the_facts_and_edits_are_exact(model_type):
    facts, model = ZOO[model_type], zoo_model(model_type)
    ids = zoo_ids(model)
    base = logits(model, ids)
    hooks = {name: len(module._forward_pre_hooks) for name, module in model.named_modules()}
    edits = headedit.attach(model)
    assert sorted((s.path, s.heads, s.head_dim) for s in edits.sites) == sorted(facts.sites)
    assert {s.position for s in edits.sites} == {facts.position}
    assert torch.equal(logits(model, ids), base)
    randomise(edits)
    assert not torch.equal(logits(model, ids), base)
    with edits.disable_adapter():
        assert torch.equal(logits(model, ids), base)
    edits.detach()
    assert torch.equal(logits(model, ids), base)
    assert {name: len(module._forward_pre_hooks) for name, module in model.named_modules()} == hooks


@pytest.mark.parametrize("model_type", WITHOUT_HEADS)
def test_types_without_heads_are_refused_with_the_reason(model_type):
    with pytest.raises(HeadEditError, match=f"The model type {model_type} cannot be edited: its .*heads"):
        headedit.attach(zoo_model(model_type))


def test_every_type_of_transformers_is_covered():
    assert set(ZOO) <= set(packaged_specs())
    assert len(WITHOUT_HEADS) == 4
    assert len(ZOO) - len(WITHOUT_HEADS) == (192 if "dory" in ZOO else 185)  # transformers 5.24 brought seven


def biased(model_type):
    """Config values of a type with the switch of its spec on."""
    key = packaged_specs()[model_type].merge.bias_key
    config = copy.deepcopy(tiny_configs()[model_type])
    together = {"internlm3": {"qkv_bias": True}}.get(model_type, {})
    config.get("text_config", config).update({key: True, **together})
    return config


@pytest.mark.parametrize(
    "model_type", [t for t in WITH_HEADS if packaged_specs()[t].merge and packaged_specs()[t].merge.bias_key]
)
def test_the_bias_key_of_a_spec_gives_the_projection_a_bias(model_type):
    model = zoo_model(model_type, biased(model_type))
    assert all(isinstance(site.module.bias, torch.Tensor) for site in headedit.attach(model).sites)


@pytest.mark.parametrize("model_type", [t for t in WITH_HEADS if packaged_specs()[t].merge is None])
def test_a_spec_without_a_merge_rule_has_a_bias_already(model_type):
    assert all(isinstance(site.module.bias, torch.Tensor) for site in headedit.attach(zoo_model(model_type)).sites)


LINEAR = {
    **({"lara_mini": ("model.layers.0.linear_attn.out_proj", 4, 8)} if "lara_mini" in ZOO else {}),
    "bailing_hybrid": ("model.layers.0.self_attn.o_proj", 4, 8),
    "bamba": ("model.layers.0.mamba.norm", 8, 8),
    "falcon_h1": ("model.layers.0.mamba.out_proj", 8, 8),
    "granitemoehybrid": ("model.layers.0.mamba.norm", 8, 8),
    "kimi_linear": ("model.layers.0.self_attn.o_proj", 4, 8),
    "minimax": ("model.layers.0.self_attn.norm", 4, 16),
    "nemotron_h": ("model.layers.0.mixer.norm", 8, 8),
    "olmo_hybrid": ("model.layers.0.linear_attn.o_proj", 4, 8),
    "qwen3_5": ("model.layers.0.linear_attn.out_proj", 4, 8),
    "qwen3_5_moe": ("model.layers.0.linear_attn.out_proj", 4, 8),
    "qwen3_5_moe_text": ("model.layers.0.linear_attn.out_proj", 4, 8),
    "qwen3_5_text": ("model.layers.0.linear_attn.out_proj", 4, 8),
    "qwen3_next": ("model.layers.0.linear_attn.out_proj", 4, 8),
    "qwen4_exp": ("model.layers.0.linear_attn.out_proj", 4, 8),
    "qwen4_exp_text": ("model.layers.0.linear_attn.out_proj", 4, 8),
    "zamba2": ("model.layers.0.mamba.norm", 8, 8),
}


def test_the_heads_of_other_mixers_are_sites_of_their_own_kind():
    offered = {t for t in WITH_HEADS if {"attention", "linear"} <= set(packaged_specs()[t].kinds())}
    assert offered == set(LINEAR)
    assert [packaged_specs()[t].kinds()[0] for t in ("mamba2", "xlstm")] == ["linear", "linear"]


@pytest.mark.parametrize("model_type", sorted(LINEAR))
def test_the_heads_of_other_mixers_are_edited_on_request(model_type):
    model = zoo_model(model_type)
    ids = zoo_ids(model)
    base = logits(model, ids)
    edits = headedit.attach(model)
    assert {site.kind for site in edits.sites} == {"attention"}
    edits.detach()
    edits = headedit.attach(model, config=EditConfig(sites=["attention", "linear"]))
    linear = [site for site in edits.sites if site.kind == "linear"]
    assert (linear[0].path, linear[0].heads, linear[0].head_dim) == LINEAR[model_type]
    assert {site.kind for site in edits.sites} == {"attention", "linear"}
    assert torch.equal(logits(model, ids), base)
    edits.set_head(linear[0].layer, 1, scale=0.5, kind="linear")
    assert not torch.equal(logits(model, ids), base)
    edits.detach()
    assert torch.equal(logits(model, ids), base)


EXPERTS_ONLY = [
    "aria_text",
    "cohere2_moe",
    "flex_olmo",
    "gpt_oss",
    "granitemoe",
    "granitemoe_swa",
    "granitemoehybrid",
    "granitemoeshared",
    "hunyuan_v1_moe",
    "kolibri1",
    "llama4",
    "llama4_text",
    "mellum",
    "minimax_m2",
    "minimax_m3_vl_text",
    "mixtral",
    "olmoe",
    "phimoe",
    "qwen2_moe",
    "qwen3_5_moe",
    "qwen3_5_moe_text",
    "qwen3_moe",
    "qwen3_next",
    "qwen4_exp",
    "qwen4_exp_text",
    "solar_open",
    "zaya",
]


@pytest.mark.parametrize(
    "model_type", [t for t in WITH_HEADS if "mlp" in packaged_specs()[t].kinds() and t not in EXPERTS_ONLY]
)
def test_the_mlp_is_a_site_of_one_group_or_of_several(model_type):
    model = zoo_model(model_type)
    ids = zoo_ids(model)
    base = logits(model, ids)
    for groups in (1, 4):
        edits = headedit.attach(model, config=EditConfig(sites=["mlp"], mlp_groups=groups))
        assert {(site.kind, site.heads) for site in edits.sites} == {("mlp", groups)}
        assert torch.equal(logits(model, ids), base)
        randomise(edits)
        assert not torch.equal(logits(model, ids), base)
        edits.detach()


@pytest.mark.parametrize("model_type", EXPERTS_ONLY)
def test_layers_of_experts_have_no_mlp_site(model_type):
    with pytest.raises(HeadEditError, match="is a mlp site by the path"):
        headedit.attach(zoo_model(model_type), config=EditConfig(sites=["mlp"]))


BROKEN_CACHE = {
    "blt": "its config has no num_hidden_layers, which the cache asks for",
    "cpmant": "the lengths of mask and cache differ",
    "prophetnet": "cached and full logits of the unedited model differ by 2e-4",
    "reformer": "an einsum over the cached states has the wrong rank",
}
"""Types whose unedited model does not decode with a cache as without in transformers 5.23."""

BY_GENERATE = ["bamba", "dory", "mamba2", "openai-gpt", "recurrent_gemma", "xlm", "xlstm"]
"""Types whose cache is not handed out as past_key_values, or that have none."""


@pytest.mark.parametrize("model_type", sorted(set(WITH_HEADS) - set(BROKEN_CACHE)))
def test_cached_decoding_equals_the_full_forward(model_type):
    model = zoo_model(model_type)
    ids = zoo_ids(model)
    randomise(headedit.attach(model))
    if model_type in BY_GENERATE:
        options = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
        options |= {"output_scores": True, "return_dict_in_generate": True}
        cached, full = (torch.stack(model.generate(ids, use_cache=c, **options).scores) for c in (True, False))
    else:
        with torch.no_grad():
            full = model(input_ids=ids, use_cache=False).logits[:, 3:5]
            first = model(input_ids=ids[:, :4], use_cache=True)
            second = model(input_ids=ids[:, 4:5], past_key_values=first.past_key_values, use_cache=True)
        cached = torch.cat([first.logits[:, -1:], second.logits], dim=1)
    assert torch.allclose(cached, full, atol=2e-5)


def image_text_model(model_type):
    """A tiny image-text model with random weights, in eval mode."""
    config = CONFIG_MAPPING[model_type](**copy.deepcopy(IMAGE_TEXT[model_type][0]))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return getattr(transformers, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES[model_type])(config).eval()


@pytest.mark.parametrize("model_type", sorted(IMAGE_TEXT))
def test_the_text_decoder_of_an_image_text_model_is_edited(model_type):
    _, path, heads, head_dim = IMAGE_TEXT[model_type]
    model = image_text_model(model_type)
    ids = torch.randint(3, 100, (1, 7), generator=torch.Generator().manual_seed(1))
    base = logits(model, ids)
    edits = headedit.attach(model)
    stack = path.split(".layers.")[0] + ".layers."
    assert (edits.sites[0].path, edits.sites[0].heads, edits.sites[0].head_dim) == (path, heads, head_dim)
    assert all(site.path.startswith(stack) for site in edits.sites)
    assert torch.equal(logits(model, ids), base)
    randomise(edits)
    assert not torch.equal(logits(model, ids), base)
    edits.detach()
    assert torch.equal(logits(model, ids), base)


IN_PLACE = ["blt", "git"]
"""Types that change their embeddings in place, which fails under checkpointing where the base is frozen."""

DRAW_IN_BETWEEN = ["dory", "hrm_text", "inkling2_loop_text", "phimoe", "prophetnet"]
"""Types that call a site several times in a pass, or draw numbers of their own between two sites."""


@pytest.mark.parametrize("model_type", sorted(set(WITH_HEADS) - set(IN_PLACE)))
def test_gradients_are_the_same_with_and_without_checkpointing(model_type, monkeypatch):
    model = zoo_model(model_type)
    if model_type in DRAW_IN_BETWEEN:  # then numbers come in the same order only where each site draws by itself
        monkeypatch.setattr(Passes, "affine", lambda self, running, edit: None)
    if not model.supports_gradient_checkpointing:
        pytest.skip("transformers offers no checkpointing for it")
    ids = zoo_ids(model)
    edits = headedit.attach(model)
    randomise(edits)
    for gate in edits.gate_parameters():
        gate.data.zero_()
    model.train()

    def gradients():
        torch.manual_seed(0)
        out = model(input_ids=ids, use_cache=False).logits
        return torch.autograd.grad(out.float().square().mean(), edits.vector_parameters())

    plain = gradients()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    checkpointed = gradients()
    assert len(plain) == len(checkpointed) > 0
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-9) for a, b in zip(plain, checkpointed, strict=True))


@pytest.mark.parametrize("model_type", WITH_HEADS)
def test_every_slot_of_a_type_is_the_head_of_its_number(model_type):
    model = zoo_model(model_type)
    proofs = prove_sites(model, headedit.attach(model).sites, input_ids=zoo_ids(model))
    assert proofs
    assert [proof.problems for proof in proofs if not proof.ok] == []
    assert all(proof.proved for proof in proofs)


def test_the_naive_spec_of_diffllama_is_caught():
    naive = {"path": "layers.{layer}.self_attn.o_proj", "heads": "num_attention_heads", "head_dim": "head_dim"}
    spec = build(Spec, {"model_types": ["diffllama"], "sites": {"attention": naive}}, "naive")
    model = zoo_model("diffllama")
    edits = headedit.attach(model, spec=spec)  # shapes alone cannot tell
    proofs = prove_sites(model, edits.sites)
    assert len(proofs) == len(edits.sites) > 0
    for proof in proofs:
        assert not proof.ok
        assert any("head 3 moved the coordinates 32-63: slots 2-3; the spec says slot 3" in p for p in proof.problems)


@pytest.mark.parametrize("model_type", sorted(set(LINEAR) - {"minimax"} | {"mamba2", "xlstm"}))
def test_every_slot_of_another_mixer_is_the_head_of_its_number(model_type):
    model = zoo_model(model_type)
    edits = headedit.attach(model, config=EditConfig(sites=["linear"]))
    weights = {name: p.clone() for name, p in model.named_parameters()}
    for proof in prove_sites(model, edits.sites, input_ids=zoo_ids(model)):
        assert proof.ok, proof.problems
        assert any("its place is proved" in note for note in proof.notes)
    assert all(torch.equal(p, weights[name]) for name, p in model.named_parameters())
    swapped = [dataclasses.replace(site, heads=site.head_dim, head_dim=site.heads) for site in edits.sites]
    if edits.sites[0].heads != edits.sites[0].head_dim:
        assert not any(proof.ok for proof in prove_sites(model, swapped, input_ids=zoo_ids(model)))


@pytest.mark.parametrize("model_type", WITH_HEADS)
def test_a_claim_of_wrong_heads_is_never_proved(model_type):
    """Twice the heads of half the width, and half of twice: shapes allow them, the probe does not."""
    model = zoo_model(model_type)
    sites = headedit.attach(model).sites
    wrong = [dataclasses.replace(s, heads=2 * s.heads, head_dim=s.head_dim // 2) for s in sites if s.head_dim % 2 == 0]
    halved = [dataclasses.replace(s, heads=s.heads // 2, head_dim=2 * s.head_dim) for s in sites if s.heads % 2 == 0]
    assert wrong or halved
    for claims in (wrong, halved):
        assert not any(proof.ok for proof in prove_sites(model, claims, input_ids=zoo_ids(model)))


@pytest.mark.parametrize("model_type", ["gemma3n_text", "gemma4_text"])
def test_reentrant_checkpointing_is_refused_where_it_would_be_silently_wrong(model_type):
    model = zoo_model(model_type).train()
    edits = headedit.attach(model)
    randomise(edits)
    ids = zoo_ids(model)

    def gradients():
        torch.manual_seed(0)
        out = model(input_ids=ids, use_cache=False).logits
        return torch.autograd.grad(out.square().mean(), edits.vector_parameters(), allow_unused=True)

    gradients()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": True})
    with pytest.raises(
        HeadEditError, match=r"Reentrant gradient checkpointing gives wrong gradients.*use_reentrant=False"
    ):
        gradients()
    logits(model, ids)  # without gradients there is nothing to get wrong
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    gradients()
    assert not model.headedit._forward_pre_hooks
    edits.detach()
    assert not model._forward_pre_hooks


UNPROVED = {
    "muse_spark": "each head moves its own slot, but a norm in between takes the factor away",
    "unlimited_ocr": "the unedited model does not run under eager attention",
}


@pytest.mark.parametrize("model_type", sorted(set(IMAGE_TEXT) - set(UNPROVED)))
def test_every_slot_of_an_image_text_model_is_the_head_of_its_number(model_type):
    model = image_text_model(model_type)
    ids = torch.randint(3, 100, (1, 7), generator=torch.Generator().manual_seed(1))
    proofs = prove_sites(model, headedit.attach(model).sites, input_ids=ids)
    assert proofs
    assert [proof.problems for proof in proofs if not proof.ok] == []
