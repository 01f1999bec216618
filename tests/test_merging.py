"""Merging: the weights hold the edit, a plain checkpoint gives the hooked logits, and all of it can be undone."""

import copy
import json
import os
import pickle
import re
import subprocess
import sys
from contextlib import nullcontext

import pytest
import torch
import typer
from tiny import FACTS, logits, randomise, tiny_model
from torch import nn
from transformers import AutoModelForCausalLM, LlamaForCausalLM
from typer.testing import CliRunner
from zoo import ZOO, zoo_ids, zoo_model

import headedit
from headedit import EditConfig, HeadEditError
from headedit.cli import merge as merge_command
from headedit.edits.merge.export import export_as
from headedit.edits.merge.fold import fold
from headedit.edits.merge.merge import merge, mergeable, unmerge
from headedit.edits.merge.peft import to_peft
from headedit.edits.merge.projection import merged_tensors

NO_BIAS = {"mixtral", "qwen2_moe", "phi3"}
WINDOWED = {"mistral", "ministral"}
"""Their tiny configs have a sliding window that acts."""

SWEEP = {
    **dict.fromkeys(["afmoe", "bailing_hybrid", "bamba", "bart", "bert", "bloom", "deepseek_v3"], "merged"),
    **dict.fromkeys(["diffllama", "dots3_note", "ernie4_5", "falcon_h1", "gemma3n_text", "gemma4_text"], "merged"),
    **dict.fromkeys(["gpt_neo", "hrm_text", "internlm3", "laguna", "longcat_flash", "olmo_hybrid"], "merged"),
    **dict.fromkeys(["prophetnet", "qwen3_5", "recurrent_gemma", "seed_oss", "starcoder2", "xlstm"], "merged"),
    **dict.fromkeys(["deepseek_v4", "mpt", "nemotron_h", "reformer"], "scale only"),
    **dict.fromkeys(["bitnet", "jetmoe", "mamba2", "zamba", "zamba2"], "refused"),
}


def edited(model, seed=0, **config):
    edits = headedit.attach(model, config=EditConfig(**config))
    randomise(edits, seed)
    return edits


def state(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_same_state(model, before):
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def off(wanted, found):
    """The largest difference, relative to the largest logit."""
    return float((wanted - found).abs().max() / wanted.abs().max())


def reload(model, folder):
    model.save_pretrained(folder)
    fresh, report = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert not report["mismatched_keys"]
    return fresh.eval()


@pytest.mark.parametrize("model_type", sorted(set(FACTS) - NO_BIAS - WINDOWED))
def test_a_plain_checkpoint_gives_the_logits_of_the_hooked_model(model_type, ids, tmp_path):
    model = tiny_model(model_type)
    base = logits(model, ids)
    edits = edited(model)
    wanted = logits(model, ids)
    assert off(base, wanted) > 1e-3
    plain = edits.merge_and_unload()
    assert (plain is model) == (model_type != "qwen2")
    assert not edits.attached
    assert not any(m._forward_pre_hooks for m in plain.modules())
    assert off(wanted, logits(plain, ids)) < 1e-5
    assert off(wanted, logits(reload(plain, tmp_path), ids)) < 1e-5


def test_a_merged_checkpoint_loads_where_headedit_cannot_be_imported(ids, tmp_path):
    wanted = {}
    for model_type in ("llama", "gpt2", "qwen2"):
        edits = edited(tiny_model(model_type))
        wanted[model_type] = logits(edits.model, ids)
        edits.merge_and_unload().save_pretrained(tmp_path / model_type)
    torch.save(ids, tmp_path / "ids.pt")
    code = (
        "import sys; sys.modules['headedit'] = None\n"
        "import torch; from transformers import AutoModelForCausalLM as Auto\n"
        "torch.set_num_threads(1); ids = torch.load('ids.pt')\n"
        "for name in ('llama', 'gpt2', 'qwen2'):\n"
        "    with torch.no_grad(): found = Auto.from_pretrained(name).eval()(input_ids=ids).logits\n"
        "    torch.save(found, name + '.pt')\n"
        "try: import headedit\n"
        "except ImportError: print('blocked')\n"
    )
    ran = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert ran.stdout.split() == ["blocked"], ran.stderr
    for name, expected in wanted.items():
        assert off(expected, torch.load(tmp_path / f"{name}.pt")) < 1e-5


@pytest.mark.parametrize(("model_type", "kind"), SWEEP.items())
def test_every_kind_of_architecture_merges_or_says_why_not(model_type, kind, tmp_path):
    assert ZOO[model_type].sites
    model = zoo_model(model_type)
    ids, base = zoo_ids(model), state(model)
    edits = edited(model)
    before, wanted = state(model), seeded(model, ids)
    can, how = mergeable(model, edits.sites, edits.spec)
    assert can == (kind == "merged")
    if kind != "merged":
        with pytest.raises(HeadEditError, match=r"(An offset cannot|cannot) be merged.*Keep the edits next to"):
            merge(edits)
        assert how.startswith("only a scale") == (kind == "scale only")
        assert_same_state(model, before)
        assert torch.equal(seeded(model, ids), wanted)
        edits.detach()
        edits = edited(model, vectors="scale")
        wanted = seeded(model, ids)
    if kind == "refused":
        with pytest.raises(HeadEditError, match="cannot be merged"):
            edits.merge_and_unload()
        assert edits.attached
        assert_same_state(edits.detach(), base)
        return
    plain = edits.merge_and_unload()
    assert off(wanted, seeded(plain, ids)) < 1e-5
    plain.save_pretrained(tmp_path)
    assert off(wanted, seeded(type(plain).from_pretrained(tmp_path).eval(), ids)) < 1e-5


def seeded(model, ids):
    torch.manual_seed(0)  # reformer draws its hashes
    with torch.no_grad():
        return model(input_ids=ids, use_cache=False).logits


@pytest.mark.parametrize("config", [{"gates": "shared"}, {"eval_gate": "expectation"}, {"layers": [1]}, {"mode": 1}])
def test_the_merged_edit_is_that_of_eval_mode(llama, ids, config):
    training = config.pop("mode", None) is not None
    edits = edited(llama, **config)
    wanted = logits(llama, ids)
    llama.train(training)
    merge(edits)
    assert llama.training == edits.module.site_edits[0].training == training
    assert off(wanted, logits(llama.eval(), ids)) < 1e-5


def test_mlp_and_attention_merge_together_each_by_its_own_flag(llama, ids, tmp_path):
    edits = edited(llama, sites=["attention", "mlp"], mlp_groups=4)
    wanted = logits(llama, ids)
    plain = edits.merge_and_unload()
    assert plain.config.attention_bias
    assert plain.config.mlp_bias
    assert off(wanted, logits(reload(plain, tmp_path), ids)) < 1e-5


def test_the_formula_to_the_bit_and_idle_sites_untouched(llama):
    edits = headedit.attach(llama)
    offset = torch.randn(16)
    edits.set_head(1, 2, scale=0.25, offset=offset)
    first, second = (layer.self_attn.o_proj for layer in llama.model.layers)
    untouched, weight = first.weight.clone(), second.weight.detach().clone()
    merge(edits)
    assert torch.equal(second.weight[:, 32:48], weight[:, 32:48] * 0.25)
    assert torch.equal(second.weight[:, :32], weight[:, :32])
    assert torch.allclose(second.bias, weight[:, 32:48] @ offset, atol=1e-7)
    assert torch.equal(first.weight, untouched)
    assert not first.bias.any()


def test_a_scale_alone_needs_no_bias_anywhere(ids):
    for model_type in ("llama", "mixtral", "mistral"):
        model = tiny_model(model_type)
        config, names = model.config.to_dict(), list(model.state_dict())
        edits = edited(model, vectors="scale")
        wanted = logits(model, ids)
        plain = edits.merge_and_unload()
        assert plain is model
        assert list(plain.state_dict()) == names
        assert plain.config.to_dict() == config
        assert off(wanted, logits(plain, ids)) < 1e-5


def test_half_precision_is_computed_in_float32_and_rounded_once(llama, ids):
    llama.to(torch.bfloat16)
    edits = edited(llama, vectors="scale")
    wanted, site = logits(llama, ids), llama.model.layers[0].self_attn.o_proj
    weight, scale = site.weight.detach().clone(), edits.module.site_edits[0].eval().scale_and_offset()[0]
    merge(edits)
    assert torch.equal(site.weight, (weight.float() * scale).to(torch.bfloat16))
    assert off(wanted, logits(llama, ids)) < 4 * torch.finfo(torch.bfloat16).eps
    unmerge(edits)
    edits.detach()
    edits = edited(llama)
    wanted = logits(llama, ids)
    merge(edits)
    assert off(wanted, logits(llama, ids)) < 4 * torch.finfo(torch.bfloat16).eps


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "opt", "falcon", "qwen3", "gemma3"])
def test_unmerging_is_bit_exact(model_type, ids):
    model = tiny_model(model_type)
    edits = edited(model)
    before, config, wanted = state(model), model.config.to_dict(), logits(model, ids)
    parameters = dict(model.named_parameters())
    for _ in range(2):
        merge(edits)
        assert edits.merged_adapters == ["default"]
        assert off(wanted, logits(model, ids)) < 1e-5
        unmerge(edits)
        assert_same_state(model, before)
        assert model.config.to_dict() == config
        assert torch.equal(logits(model, ids), wanted)
    assert all(parameters[name] is p for name, p in model.named_parameters())


def test_disable_adapter_gives_the_base_model_while_merged(llama, ids):
    base, before = logits(llama, ids), llama.config.to_dict()
    edits = edited(llama)
    merge(edits)
    merged = logits(llama, ids)
    with edits.disable_adapter() as model, edits.disable_adapter():
        assert torch.equal(logits(model, ids), base)
        assert model.config.to_dict() == before
    assert torch.equal(logits(llama, ids), merged)
    assert off(base, merged) > 1e-3
    with edits.disable_adapter():
        with edits.disable_adapter():
            pass
        assert torch.equal(logits(llama, ids), base)  # the inner context is left, the outer one is not
        unmerge(edits)
        assert torch.equal(logits(llama, ids), base)
    assert off(merged, logits(llama, ids)) < 1e-5
    assert edits.merged is None


@pytest.mark.parametrize("twin_of", [copy.deepcopy, lambda edits: pickle.loads(pickle.dumps(edits)), copy.copy])
def test_a_copy_of_a_merged_handle_knows_that_it_is_merged(twin_of, llama, ids):
    base = logits(llama, ids)
    edits = edited(llama)
    wanted = logits(llama, ids)
    merge(edits)
    merged, shallow = logits(llama, ids), twin_of is copy.copy
    twin = twin_of(edits)
    assert (twin is edits) == (twin.model is llama) == shallow  # a model has one handle
    assert headedit.handle(twin.model) is twin
    assert twin.merged_adapters == ["default"]
    assert torch.equal(logits(twin.model, ids), merged)
    with twin.disable_adapter():
        assert torch.equal(logits(twin.model, ids), base)
        assert torch.equal(logits(llama, ids), base if shallow else merged)
    with pytest.raises(HeadEditError, match="merged already"):
        twin.merge_adapter()
    unmerge(twin)
    assert torch.equal(logits(twin.model, ids), wanted)
    assert edits.merged_adapters == ([] if shallow else ["default"])
    assert off(wanted, logits(twin.merge_and_unload(), ids)) < 1e-5
    assert off(wanted, logits(llama, ids)) < 1e-5


def three_adapters(model):
    edits = edited(model)
    for seed, name in enumerate("bc", start=1):
        edits.add_adapter(name)
        edits.set_adapter(name)
        randomise(edits, seed)
    edits.set_adapter("default")
    return edits


@pytest.mark.parametrize("names", [["b"], ["b", "c"], ["default"], ("c",), None])
@pytest.mark.parametrize("model_type", ["llama", "qwen2"])
def test_adapters_are_merged_by_name_and_several_as_their_sum(names, model_type, ids):
    model = tiny_model(model_type)
    edits = three_adapters(model)
    active = logits(model, ids)
    edits.add_adapter(
        "sum", sum((edits[name] for name in (names or ["default"])[1:]), edits[(names or ["default"])[0]] * 1)
    )
    edits.set_adapter("sum")
    wanted = logits(model, ids)
    edits.set_adapter("default")
    if model_type == "llama":
        edits.merge_adapter(names)
        assert edits.merged_adapters == list(names or ["default"])
        assert off(wanted, logits(model, ids)) < 1e-5
        edits.unmerge_adapter()
        assert torch.equal(logits(model, ids), active)
    assert off(wanted, logits(edits.merge_and_unload(adapter_names=names, progressbar=True), ids)) < 1e-5


@pytest.mark.parametrize(
    ("names", "message"), [(["x"], "no adapter 'x'"), ([], "expected a list"), ("b", "expected a list")]
)
def test_names_that_cannot_be_merged_are_refused(names, message, llama):
    edits = three_adapters(llama)
    with pytest.raises(HeadEditError, match=message):
        edits.merge_adapter(names)
    edits.merge_adapter(["b"])
    with pytest.raises(HeadEditError, match=r"b is merged already; call unmerge_adapter\(\) to merge others"):
        edits.merge_and_unload(adapter_names=["c"])
    assert edits.attached


def test_merging_disabled_edits_is_refused(llama, ids):
    base = logits(llama, ids)
    edits = edited(llama)
    wanted = logits(llama, ids)
    with edits.disable_adapter():
        for call in (edits.merge_adapter, edits.merge_and_unload):
            with pytest.raises(HeadEditError, match=r"These edits are disabled.*leave disable_adapter\(\)"):
                call()
        assert torch.equal(logits(llama, ids), base)
    assert torch.equal(logits(llama, ids), wanted)


def test_new_biases_are_trainable_when_the_weights_were(llama):
    edited(llama).merge_and_unload()
    assert all(p.requires_grad for p in llama.parameters())
    frozen = tiny_model("llama").requires_grad_(False)
    edited(frozen).merge_and_unload()
    assert not any(p.requires_grad for p in frozen.parameters())


def test_merging_twice_and_unmerging_nothing_are_refused(llama):
    edits = edited(llama)
    with pytest.raises(HeadEditError, match="not merged, so there is nothing"):
        unmerge(edits)
    merge(edits)
    with pytest.raises(HeadEditError, match=r"merged already; call unmerge_adapter\(\)"):
        merge(edits)
    with pytest.raises(HeadEditError, match=r"merged; call unmerge_adapter\(\)"):
        to_peft(edits, "nowhere")
    unmerge(edits)
    edits.detach()
    with pytest.raises(HeadEditError, match="detached, so there is nothing to merge"):
        edits.merge_and_unload()


@pytest.mark.parametrize("model_type", ["llama", "qwen2"])
def test_a_safe_merge_that_finds_nan_changes_nothing(model_type, ids):
    model = tiny_model(model_type)
    edits = edited(model)
    with torch.no_grad():
        edits.module.site_edits[1].gates["offset_gate"].fill_(10)
        edits.module.site_edits[1].vectors["offset"][2, 3] = torch.nan
    before, config = state(model), model.config.to_dict()
    with pytest.raises(HeadEditError, match=r"layers\.1\.self_attn\.o_proj: merged.*NaN or infinity; nothing"):
        edits.merge_and_unload(safe_merge=True)
    assert edits.attached
    assert edits.merged is None
    after = model.state_dict()
    assert all(torch.equal(after[name].nan_to_num(), tensor.nan_to_num()) for name, tensor in before.items())
    assert model.config.to_dict() == config


def wrap(model):
    import peft

    peft.get_peft_model(model, peft.LoraConfig(target_modules=["o_proj"]))
    return model


def quantize(model):
    import bitsandbytes

    for layer in model.model.layers:
        quantized = bitsandbytes.nn.Linear4bit(64, 32, bias=False)
        quantized.load_state_dict(layer.self_attn.o_proj.state_dict())
        layer.self_attn.o_proj = quantized.to("cpu")
    return model


def share(model):
    model.model.layers[1].self_attn.o_proj.weight = model.model.layers[0].self_attn.o_proj.weight
    return model


def float8(model):
    weight = model.model.layers[0].self_attn.o_proj.weight
    weight.data = weight.data.to(torch.float8_e4m3fn)
    return model


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (wrap, r"layers\.0\.self_attn\.o_proj cannot be merged: PEFT wraps the projection\. Merge that first: model ="),
        (quantize, r"o_proj cannot be merged: its weight is quantized \(Linear4bit.*full precision"),
        (float8, r"o_proj cannot be merged: its weight is quantized \(Linear, Parameter of torch\.float8_e4m3fn"),
        (
            share,
            r"layers\.0\.self_attn\.o_proj cannot be merged: its weight is shared with model\.layers\.1\.self_attn",
        ),
        (lambda model: model.to("meta"), r"o_proj cannot be merged: its weight is offloaded or on the meta device"),
    ],
)
def test_weights_that_cannot_take_an_edit_are_refused_by_name(llama, change, message):
    edits = edited(change(llama))
    with pytest.raises(HeadEditError, match=message):
        merge(edits)
    assert edits.merged is None
    assert not llama.config.attention_bias
    can, why = mergeable(llama, edits.sites, edits.spec)
    assert not can
    assert "o_proj" in why


def test_lora_elsewhere_in_the_model_prevents_only_an_offset_from_merging(llama, ids):
    import peft

    peft.get_peft_model(llama, peft.LoraConfig(target_modules=["q_proj"]))
    edits = edited(llama)
    with pytest.raises(HeadEditError, match=r"PEFT wraps parts of this LlamaForCausalLM.*Merge that first"):
        merge(edits)
    edits.detach()
    edits = edited(llama, vectors="scale")
    wanted = logits(llama, ids)
    merge(edits)
    assert off(wanted, logits(llama, ids)) < 1e-5


def test_peft_put_on_after_the_edits_is_refused_too(llama):
    edits = edited(llama)
    wrap(llama)
    with pytest.raises(HeadEditError, match="PEFT wraps the projection"):
        merge(edits)


@pytest.mark.parametrize(
    ("model_type", "how"),
    [
        ("gpt2", "yes, into the bias that the projection has"),
        ("llama", "yes, by attention_bias=True"),
        ("qwen2", "yes, as llama"),
        ("mistral", r"only a scale: its sliding window of 16 tokens acts in texts up to 64"),
        ("mixtral", "only a scale: the output projection can have no bias"),
    ],
)
def test_how_an_offset_merges_is_told_before(model_type, how):
    model = tiny_model(model_type)
    edits = headedit.attach(model)
    can, found = mergeable(model, edits.sites, edits.spec)
    assert found.startswith(how)
    assert can == how.startswith("yes")


@pytest.mark.parametrize(
    ("model_type", "changes"),
    [
        ("qwen2", {}),
        ("qwen2", {"tie_word_embeddings": True, "rope_parameters": {"rope_type": "default", "rope_theta": 500.0}}),
        ("qwen2", {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e6}, "rms_norm_eps": 0.1}),
        ("mistral", {"sliding_window": None, "head_dim": 24}),
        ("mistral", {"sliding_window": 64}),
        ("qwen2", {"head_dim": 24}),
        ("ministral", {"sliding_window": 16, "layer_types": ["full_attention"] * 2, "hidden_act": "gelu"}),
    ],
)
def test_rehoming_gives_the_same_model_as_a_llama(model_type, changes, tmp_path):
    model = tiny_model(model_type, **changes)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_()  # fresh models have zeros here
    ids = torch.randint(128, (2, 60), generator=torch.Generator().manual_seed(3))
    edits = edited(model)
    wanted, before = logits(model, ids), state(model)
    plain = export_as(edits)
    assert type(plain) is LlamaForCausalLM
    assert off(wanted, logits(plain, ids)) < 1e-5
    fresh = reload(plain, tmp_path)
    assert type(fresh) is LlamaForCausalLM
    assert off(wanted, logits(fresh, ids)) < 1e-5
    assert_same_state(model, before)
    assert torch.equal(logits(model, ids), wanted)


def test_exporting_as_another_type_includes_mlp_sites(ids):
    edits = edited(tiny_model("qwen2"), sites=["attention", "mlp"])
    wanted = logits(edits.model, ids)
    plain = edits.merge_and_unload()
    assert plain.config.mlp_bias
    assert off(wanted, logits(plain, ids)) < 1e-5


@pytest.mark.parametrize(
    ("model_type", "changes", "message"),
    [
        (
            "mistral",
            {},
            r"its sliding window of 16 tokens acts in texts up to 64.*load it with max_position_embeddings",
        ),
        ("mistral", {"layer_types": ["full_attention"] * 2}, r"its sliding window of 16 tokens acts"),
        ("ministral", {}, r"its sliding window of 16 tokens acts"),
        (
            "qwen2",
            {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1},
            r"window of 8 tokens acts",
        ),
        ("llama", {}, r"llama\.yaml: merge: names no type to export a LlamaForCausalLM as"),
    ],
)
def test_exporting_as_another_type_is_refused_where_it_would_not_be_exact(model_type, changes, message, ids):
    model = tiny_model(model_type, **changes)
    edits = edited(model)
    wanted = logits(model, ids)
    with pytest.raises(HeadEditError, match=message):
        export_as(edits)
    assert edits.attached
    assert torch.equal(logits(model, ids), wanted)


def test_exporting_as_another_type_compares_the_logits(monkeypatch):
    from transformers import Qwen2Config

    edits = edited(tiny_model("qwen2"))
    whole = Qwen2Config.to_dict
    monkeypatch.setattr(Qwen2Config, "to_dict", lambda self: {**whole(self), "rms_norm_eps": 0.5})
    with pytest.raises(HeadEditError, match=r"Exported as LlamaForCausalLM, the logits are off by .*: not exported"):
        export_as(edits)


def test_the_refusal_of_a_merge_in_place_names_merge_and_unload():
    with pytest.raises(HeadEditError, match=r"Qwen2ForCausalLM can have no bias.*merge_and_unload\(\) gives"):
        merge(edited(tiny_model("qwen2")))


def test_grouped_heads_with_a_bias_merge():
    """No type of transformers has one; each group of inputs has its own rows of the weight and of the bias."""
    weight, bias, z = torch.randn(6, 4), torch.randn(6), torch.randn(5, 12)  # 3 groups of 4 inputs and 2 outputs

    def grouped(weight, bias, z):
        return torch.einsum("bgi,goi->bgo", z.view(-1, 3, 4), weight.view(3, 2, 4)).flatten(1) + bias

    scale, offset = torch.randn(12), torch.randn(12)
    merged = merged_tensors(weight, bias, scale, offset, conv=False)
    assert torch.allclose(grouped(*merged, z), grouped(weight, bias, z * scale + offset), atol=1e-5)


def test_folding_edits_writes_nothing_to_the_model(llama, ids):
    edits = edited(llama)
    before = state(llama)
    assert len(fold(edits, edits.module)) == 2
    assert_same_state(llama, before)


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "qwen2", "mixtral", "opt", "falcon"])
@pytest.mark.parametrize("vectors", ["scale", "offset", "both"])
def test_an_adapter_for_peft_computes_the_same_in_peft(model_type, vectors, ids, tmp_path):
    from peft import PeftModel

    edits = edited(tiny_model(model_type), vectors=vectors)
    wanted = logits(edits.model, ids)
    to_peft(edits, tmp_path / "adapter")
    base = tiny_model(model_type)
    assert off(wanted, logits(base, ids)) > 1e-3
    with pytest.warns() if vectors != "scale" and model_type not in ("gpt2", "opt") else nullcontext():
        loaded = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    assert loaded.peft_config["default"].peft_type == ("IA3" if vectors == "scale" else "LORA")
    assert off(wanted, logits(loaded, ids)) < 1e-5


@pytest.mark.parametrize(
    ("model_type", "message"),
    [
        ("mamba2", r"mixer\.norm cannot be an adapter of PEFT: its class MambaRMSNormGated"),
        ("deepseek_v4", r"o_a_proj cannot be an adapter of PEFT: its class DeepseekV4GroupedLinear"),
        ("zamba", r"cannot be a LoRA: its weight is shared with"),
    ],
)
def test_what_peft_cannot_hold_is_said(model_type, message, tmp_path):
    with pytest.raises(HeadEditError, match=message):
        to_peft(edited(zoo_model(model_type)), tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()


@pytest.fixture
def app():
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(merge_command.merge)
    app.callback()(lambda: None)
    return app


@pytest.fixture
def folders(tmp_path, request):
    from headedit.hf.loading import load_tokenizer

    model = tiny_model(getattr(request, "param", "llama"))
    model.generation_config.max_new_tokens = 5
    model.save_pretrained(tmp_path / "base")
    load_tokenizer(str(headedit.__path__[0]) + "/demo/model").save_pretrained(tmp_path / "base")
    edits = edited(model)
    edits.save_pretrained(tmp_path / "edits")
    return tmp_path, edits


def run(app, tmp_path, *options):
    arguments = ["merge", str(tmp_path / "base"), str(tmp_path / "edits"), str(tmp_path / "new" / "out"), *options]
    result = CliRunner().invoke(app, arguments)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.mark.parametrize("folders", ["llama", "qwen2"], indirect=True)
def test_the_command_writes_a_checkpoint_with_all_that_belongs_to_it(app, folders, ids):
    tmp_path, edits = folders
    result = run(app, tmp_path, "--dtype", "float32")
    out = tmp_path / "new" / "out"
    assert result.exit_code == 0
    assert "open heads" in result.output
    assert list(out.parent.iterdir()) == [out]
    model = AutoModelForCausalLM.from_pretrained(out).eval()
    assert off(logits(edits.model, ids), logits(model, ids)) < 1e-5
    assert type(model) is LlamaForCausalLM
    assert model.generation_config.max_new_tokens == 5
    assert (out / "tokenizer.json").is_file()
    note = json.loads((out / merge_command.NOTE_FILE).read_text())
    assert note["base_model"] == "base"
    assert note["edits"] == "edits"
    assert note["rehomed_to"] == (None if type(edits.model) is LlamaForCausalLM else "LlamaForCausalLM")
    assert note["counts"]["any"][0] == edits.count_open()["any"][0]
    assert {row["vector"] for row in note["open_heads"]} == {"offset", "scale"}
    assert set(note["versions"]) == {"headedit", "torch", "transformers"}
    assert "with the head edits of `edits`" in (out / "README.md").read_text()


@pytest.mark.parametrize(
    ("folders", "said"),
    [
        ("llama", "the offsets are new biases; an engine .* may drop them"),
        ("qwen3", "vLLM's Qwen3ForCausalLM drops without a word: serve the base model by the plugin"),
        ("gpt2", None),
    ],
    indirect=["folders"],
)
def test_the_command_says_which_engine_drops_the_offsets(app, folders, said):
    tmp_path, _ = folders
    output = " ".join(run(app, tmp_path).output.replace("│", " ").split())
    if said is None:
        assert "when served" not in output
    else:
        assert re.search(said, output)


def test_the_command_does_not_write_over_anything(app, folders):
    tmp_path, _ = folders
    out = tmp_path / "new" / "out"
    out.mkdir(parents=True)
    (out / "mine.txt").write_text("kept")
    with pytest.raises(HeadEditError, match=r"out: already exists and is not an empty folder"):
        run(app, tmp_path)
    assert [p.name for p in out.iterdir()] == ["mine.txt"]
    with pytest.raises(HeadEditError, match="already exists"):  # before anything is loaded
        merge_command.merge("no model", "no edits", out)
    (out / "mine.txt").unlink()
    assert run(app, tmp_path).exit_code == 0
    assert run(app, tmp_path, "--dtype", "int4").exit_code == 2


@pytest.mark.parametrize("fault", [OSError("No space left on device"), KeyboardInterrupt()])
def test_a_half_written_checkpoint_never_remains(folders, monkeypatch, fault):
    tmp_path, edits = folders
    written = []

    def save(self, folder):
        (folder / "config.json").write_text("{}")
        written.append(os.listdir(folder))
        raise fault

    monkeypatch.setattr(LlamaForCausalLM, "save_pretrained", save)
    expected = HeadEditError if isinstance(fault, OSError) else KeyboardInterrupt
    note = merge_command.describe(edits, "base", "edits")
    with pytest.raises(expected, match="No space left" if isinstance(fault, OSError) else None):
        merge_command.write_checkpoint(edits.merge_and_unload(), None, note, tmp_path / "new" / "deep" / "out")
    assert written == [["config.json"]]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["base", "edits"]


class Squared(nn.Linear):
    def forward(self, x):
        return super().forward(x * x)


class Deaf(nn.Linear):
    """Does without its bias."""

    def forward(self, x):
        return nn.functional.linear(x, self.weight)


class Doubled(nn.Linear):
    def forward(self, x):
        return 2 * nn.functional.linear(x, self.weight, self.bias)


@pytest.mark.parametrize(
    ("cls", "message"),
    [
        (Squared, r"o_proj cannot be merged: its class Squared is not a linear map of the heads"),
        (Deaf, r"An offset cannot be merged into LlamaForCausalLM"),
        (Doubled, None),
    ],
)
def test_a_class_with_a_forward_of_its_own_is_tried_rather_than_trusted(llama, ids, cls, message):
    for layer in llama.model.layers:
        layer.self_attn.o_proj = cls(64, 32, bias=False)
    edits = edited(llama)
    wanted = logits(llama, ids)
    if message is not None:
        with pytest.raises(HeadEditError, match=message):
            merge(edits)
        return
    merge(edits)
    assert off(wanted, logits(llama, ids)) < 1e-5
