"""Edits beside other tools, precisions and devices: invariants 2 and 6 of the design."""

import copy
import functools
from types import SimpleNamespace

import accelerate
import pytest
import torch
from tiny import logits, randomise, tiny_model
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, pipeline

import headedit
from headedit import HeadEditError


def edited(model, seed=0):
    edits = headedit.attach(model)
    randomise(edits, seed)
    return edits


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_low_precision_base_keeps_float32_edits(ids, dtype):
    model = tiny_model("llama").to(dtype)
    base = logits(model, ids)
    edits = headedit.attach(model)
    assert torch.equal(logits(model, ids), base)
    assert {p.dtype for p in edits.module.parameters()} == {torch.float32}
    randomise(edits)
    assert logits(model, ids).dtype == dtype
    with edits.disable_adapter():
        assert torch.equal(logits(model, ids), base)
    model.train()
    model(input_ids=ids, labels=ids).loss.backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in edits.vector_parameters())
    edits.detach()
    assert torch.equal(logits(model.eval(), ids), base)


def test_autocast_on_the_cpu(llama, ids):
    edited(llama)
    full = logits(llama, ids)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = logits(llama, ids)
    assert torch.allclose(full, mixed.float(), atol=0.05)


QUANTIZED = {
    "8bit": functools.partial(BitsAndBytesConfig, load_in_8bit=True),
    "4bit": functools.partial(BitsAndBytesConfig, load_in_4bit=True, bnb_4bit_compute_dtype=torch.float32),
}


@pytest.mark.parametrize("bits", sorted(QUANTIZED))
def test_a_quantized_base(bits, ids, tmp_path):
    pytest.importorskip("bitsandbytes")
    tiny_model("llama", hidden_size=64, intermediate_size=64).save_pretrained(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=QUANTIZED[bits](), dtype=torch.float32)
    edits = headedit.attach(model)
    randomise(edits)
    model.train()  # before any inference, for which bitsandbytes repacks 4-bit weights on some CPUs
    model(input_ids=ids, labels=ids).loss.backward()
    assert all((p.grad != 0).any() for p in edits.vector_parameters())
    model.eval()
    edited = logits(model, ids)
    weights = {n: (p.data_ptr(), p.dtype) for n, p in model.named_parameters() if "headedit" not in n}
    with edits.disable_adapter():
        base = logits(model, ids)
    assert not torch.allclose(edited, base, atol=1e-4)
    edits.save_pretrained(tmp_path / "edits")
    edits.detach()
    assert torch.equal(logits(model, ids), base)
    assert {n: (p.data_ptr(), p.dtype) for n, p in model.named_parameters()} == weights
    headedit.attach(model).detach()
    assert torch.equal(logits(model, ids), base)
    headedit.load(model, tmp_path / "edits")
    assert torch.equal(logits(model, ids), edited)


def test_weights_that_are_packed_for_inference_are_not_trained_over(llama, tmp_path):
    """The state that bitsandbytes leaves on a CPU with AVX512-BF16, set by hand so that any CPU has it."""
    edits = headedit.attach(llama)
    llama.lm_head.weight.quant_state = SimpleNamespace(packing_format_for_cpu=True)
    rows = [{"input_ids": [3, 4, 5], "labels": [-100, 4, 5]}] * 8
    with pytest.raises(HeadEditError, match=r"packed lm_head for inference .* Load the model again and train before"):
        headedit.fit(edits, rows, output_dir=tmp_path, progress=False)


def test_repacking_is_off_while_edits_are_trained(llama, tmp_path):
    llama.lm_head.support_avx512bf16_for_cpu = True
    seen = []
    llama.lm_head.register_forward_hook(lambda module, *_: seen.append(module.support_avx512bf16_for_cpu))
    rows = [{"input_ids": [3, 4, 5], "labels": [-100, 4, 5]}] * 8
    options = {"epochs": 1, "search_epochs": 1, "min_steps": 1, "progress": False}
    headedit.fit(headedit.attach(llama), rows, rows, output_dir=tmp_path, **options)
    assert set(seen) == {False}
    assert llama.lm_head.support_avx512bf16_for_cpu


@pytest.mark.parametrize("offload", ["cpu", "disk", "device_map"])
def test_weights_that_are_elsewhere_until_they_are_needed(offload, ids, tmp_path):
    plain, model = tiny_model("llama"), tiny_model("llama")
    if offload == "cpu":
        accelerate.cpu_offload(model, execution_device="cpu")
    elif offload == "disk":
        accelerate.disk_offload(model, str(tmp_path), execution_device="cpu")
    else:
        placed = {"model.embed_tokens": "cpu", "model.layers.0": "cpu", "model.layers.1": "disk"}
        placed |= {"model.norm": "cpu", "model.rotary_emb": "cpu", "lm_head": "disk"}
        accelerate.dispatch_model(model, placed, main_device="cpu", offload_dir=str(tmp_path))
    base = logits(model, ids)
    edits = headedit.attach(model)
    assert {p.device.type for p in edits.module.parameters()} == {"cpu"}
    assert torch.equal(logits(model, ids), base)
    randomise(edits)
    edited(plain)
    assert torch.equal(logits(model, ids), logits(plain, ids))
    edits.detach()
    assert torch.equal(logits(model, ids), base)


def test_edits_follow_the_activation_to_another_dtype_and_device(llama, ids):
    edits = edited(llama)
    wanted = logits(llama, ids)
    with torch.no_grad():
        edits.module.to(torch.float64)
    assert torch.allclose(logits(llama, ids), wanted, atol=1e-5)
    z = torch.randn(1, 2, 64)
    edits.module.to("meta")
    assert edits.module.sites[0](z.to("meta")).device.type == "meta"


def test_lora_put_on_before_sees_edited_heads(llama, ids):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(target_modules=["o_proj"], r=2, init_lora_weights=False)
    model = peft.get_peft_model(llama, config).eval()
    base = logits(model, ids)
    with model.disable_adapter():
        without = logits(model, ids)
    edits = headedit.attach(model)
    assert torch.equal(logits(model, ids), base)
    seen = []
    wrapper = edits.sites[0].module
    wrapper.lora_A["default"].register_forward_pre_hook(lambda m, args: seen.append(args[0].clone()))
    edits.set_head(0, 1, scale=0.0)
    logits(model, ids)
    assert (seen[0].view(2, 7, 4, 16)[..., 1, :] == 0).all()
    edits.detach()
    assert torch.equal(logits(model, ids), base)
    with model.disable_adapter():
        assert torch.equal(logits(model, ids), without)
    assert any(p.requires_grad for p in model.parameters())


def test_nnsight_traces_an_edited_model(llama, ids):
    nnsight = pytest.importorskip("nnsight")
    edited(llama)
    expected = logits(llama, ids)
    wrapped = nnsight.NNsight(llama)
    with torch.no_grad(), wrapped.trace(input_ids=ids):
        heads = wrapped.model.layers[0].self_attn.o_proj.input.save()
        out = wrapped.lm_head.output.save()
    assert heads.shape == (2, 7, 64)
    assert torch.equal(out, expected)
    assert torch.equal(logits(llama, ids), expected)


def test_a_deep_copy_has_edits_of_its_own(llama, ids):
    edits = edited(llama)
    wanted = logits(llama, ids)
    twin = copy.deepcopy(llama)
    for head in range(4):
        edits.set_head(0, head, scale=0.0)
    assert torch.equal(logits(twin, ids), wanted)
    assert not torch.allclose(logits(llama, ids), wanted, atol=1e-4)


def test_compiled_models_compute_the_same(llama, ids):
    edits = edited(llama)
    expected = logits(llama, ids)
    compiled = torch.compile(llama, backend="aot_eager")
    assert torch.allclose(logits(compiled, ids), expected, atol=1e-5)
    with edits.disable_adapter():
        base = logits(llama, ids)
        assert torch.allclose(logits(compiled, ids), base, atol=1e-5)


def test_generation_by_pipeline_beams_and_left_padding(llama, ids):
    edited(llama)
    mask = torch.ones_like(ids)
    padded = torch.cat([torch.zeros(2, 3, dtype=ids.dtype), ids], dim=1)
    padded_mask = torch.cat([torch.zeros(2, 3, dtype=ids.dtype), mask], dim=1)
    options = {"max_new_tokens": 5, "do_sample": False, "num_beams": 3, "pad_token_id": 0}
    plain = llama.generate(ids, attention_mask=mask, **options)
    left = llama.generate(padded, attention_mask=padded_mask, **options)
    assert torch.equal(plain[:, 7:], left[:, 10:])


def test_a_text_generation_pipeline_runs_the_edits():
    from headedit.demo import MODEL_FOLDER
    from headedit.loading import load_model, load_tokenizer

    model, tokenizer = load_model(str(MODEL_FOLDER)), load_tokenizer(str(MODEL_FOLDER))
    generator = pipeline("text-generation", model=model, tokenizer=tokenizer, device="cpu")
    ask = functools.partial(generator, "copy : a b c d =", max_new_tokens=5, do_sample=False, return_full_text=False)
    assert ask()[0]["generated_text"].strip() == "a b c d"
    edits = headedit.attach(model)
    for layer in range(4):
        for head in range(8):
            edits.set_head(layer, head, scale=0.0)
    assert ask()[0]["generated_text"].strip() != "a b c d"
