"""Works with: dtypes, quantized, offloaded, compiled and checkpointed models. Invariants 2, 5 and 6."""

import functools
from types import SimpleNamespace

import accelerate
import pytest
import torch
from third_party import edited
from tiny import logits, randomise, tiny_model
from transformers import AutoModelForCausalLM, BitsAndBytesConfig
from zoo import zoo_ids, zoo_model

import headedit
from headedit import HeadEditError


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


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_heads_in_low_precision_are_edited_in_float32_and_rounded_once(ids, dtype):
    model = tiny_model("llama").to(dtype)
    projection = model.model.layers[0].self_attn.o_proj
    seen = []
    projection.register_forward_pre_hook(lambda module, args: seen.append(args[0].clone()))
    edits = headedit.attach(model)
    projection.register_forward_pre_hook(lambda module, args: seen.append(args[0].clone()))
    offset = torch.randn(16, generator=torch.Generator().manual_seed(0))
    edits.set_head(0, 2, scale=0.3, offset=offset)
    logits(model, ids)
    before, after = (z.view(2, 7, 4, 16) for z in seen)
    wanted = torch.addcmul(offset, before[:, :, 2].float(), torch.tensor(0.3)).to(dtype)
    assert torch.equal(after[:, :, 2], wanted)
    assert torch.equal(after[:, :, :2], before[:, :, :2])


def test_autocast_on_the_cpu_changes_edited_logits_and_gradients_by_rounding_alone(llama, ids):
    mixed = torch.autocast("cpu", dtype=torch.bfloat16)
    with mixed:
        base = logits(llama, ids)
    edits = edited(llama)
    full = logits(llama, ids)
    with mixed:
        assert torch.allclose(full, logits(llama, ids).float(), atol=0.05)
        with edits.disable_adapter():
            assert torch.equal(logits(llama, ids), base)

    def gradient():
        loss = llama(input_ids=ids, labels=ids).loss
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, edits.vector_parameters())])

    exact = gradient()
    with mixed:
        rounded = gradient()
    assert rounded.dtype == torch.float32
    assert torch.cosine_similarity(exact, rounded, dim=0) > 0.99


QUANTIZED = {
    "8bit": functools.partial(BitsAndBytesConfig, load_in_8bit=True),
    "4bit": functools.partial(BitsAndBytesConfig, load_in_4bit=True, bnb_4bit_compute_dtype=torch.float32),
}


@pytest.mark.parametrize("bits", sorted(QUANTIZED))
def test_a_quantized_base_is_edited_trained_and_restored_to_the_bit(bits, ids, tmp_path):
    pytest.importorskip("bitsandbytes")
    tiny_model("llama", hidden_size=64, intermediate_size=64).save_pretrained(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=QUANTIZED[bits](), dtype=torch.float32)
    edits = edited(model)
    model.train()  # before any inference, for which bitsandbytes repacks 4-bit weights on some CPUs
    model(input_ids=ids, labels=ids).loss.backward()
    assert all((p.grad != 0).any() for p in edits.vector_parameters())
    model.eval()
    wanted = logits(model, ids)
    weights = {n: (p.data_ptr(), p.dtype) for n, p in model.named_parameters() if "headedit" not in n}
    with edits.disable_adapter():
        base = logits(model, ids)
    assert not torch.allclose(wanted, base, atol=1e-4)
    edits.save_pretrained(tmp_path / "edits")
    edits.detach()
    assert torch.equal(logits(model, ids), base)
    assert {n: (p.data_ptr(), p.dtype) for n, p in model.named_parameters()} == weights
    headedit.attach(model).detach()
    assert torch.equal(logits(model, ids), base)
    headedit.load(model, tmp_path / "edits")
    assert torch.equal(logits(model, ids), wanted)


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


PLACED = {"model.embed_tokens": "cpu", "model.layers.0": "cpu", "model.layers.1": "disk"}
PLACED |= {"model.norm": "cpu", "model.rotary_emb": "cpu", "lm_head": "disk"}


@pytest.mark.parametrize("offload", ["cpu", "disk", "device_map"])
def test_offloaded_weights_are_edited_as_those_in_memory(offload, ids, tmp_path):
    plain, model = tiny_model("llama"), tiny_model("llama")
    if offload == "cpu":
        accelerate.cpu_offload(model, execution_device="cpu")
    elif offload == "disk":
        accelerate.disk_offload(model, str(tmp_path), execution_device="cpu")
    else:
        accelerate.dispatch_model(model, PLACED, main_device="cpu", offload_dir=str(tmp_path))
    base = logits(model, ids)
    edits = headedit.attach(model)
    assert {p.device.type for p in edits.module.parameters()} == {"cpu"}
    assert torch.equal(logits(model, ids), base)
    randomise(edits)
    edited(plain)
    assert torch.equal(logits(model, ids), logits(plain, ids))
    edits.detach()
    assert torch.equal(logits(model, ids), base)


def test_edits_that_are_offloaded_with_their_model_act(ids):
    model = tiny_model("llama")
    edits = edited(model)
    wanted = logits(model, ids)
    accelerate.cpu_offload(model, execution_device="cpu")
    assert all(parameter.is_meta for parameter in edits.module.parameters())
    assert torch.equal(logits(model, ids), wanted)
    model.train()
    with torch.no_grad():
        assert model(input_ids=ids).logits.isfinite().all()


def test_a_model_loaded_with_a_device_map_is_trained_and_saved(ids, tmp_path):
    plain = tiny_model("llama")
    plain.save_pretrained(tmp_path / "model")
    model = AutoModelForCausalLM.from_pretrained(
        tmp_path / "model", device_map=PLACED, offload_folder=str(tmp_path / "offloaded")
    )
    assert model.model.layers[1].self_attn.o_proj.weight.is_meta
    edits, wanted = edited(model), edited(plain)

    def gradients(model, edits):
        torch.manual_seed(0)  # the gates are sampled
        model.train()
        found = torch.autograd.grad(model(input_ids=ids, labels=ids).loss, list(edits.module.parameters()))
        model.eval()
        return found

    pairs = zip(gradients(model, edits), gradients(plain, wanted), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    with pytest.raises(HeadEditError, match=r"layers.1.self_attn.o_proj cannot be merged: its weight is offloaded"):
        edits.merge_adapter()
    edits.save_pretrained(tmp_path / "edits")
    edits.detach()
    headedit.load(model, tmp_path / "edits")
    assert torch.equal(logits(model, ids), logits(plain, ids))


def test_edits_follow_the_activation_to_another_dtype_and_device(llama, ids):
    edits = edited(llama)
    wanted = logits(llama, ids)
    with torch.no_grad():
        edits.module.to(torch.float64)
    assert torch.allclose(logits(llama, ids), wanted, atol=1e-5)
    z = torch.randn(1, 2, 64)
    edits.module.to("meta")
    assert edits.module.site_edits[0](z.to("meta")).device.type == "meta"


@pytest.mark.usefixtures("fresh_compiler")
def test_compiled_models_compute_the_same(llama, ids):
    base = logits(llama, ids)
    edits = edited(llama)
    compiled = torch.compile(llama, backend="aot_eager", fullgraph=True)
    assert torch.allclose(logits(compiled, ids), logits(llama, ids), atol=1e-5)
    with edits.disable_adapter():
        assert torch.allclose(logits(compiled, ids), base, atol=1e-5)
    before = logits(llama, ids)
    edits.set_head(1, 2, scale=0.0)
    changed = logits(llama, ids)
    assert not torch.allclose(changed, before, atol=1e-3)
    assert torch.allclose(logits(compiled, ids), changed, atol=1e-5)

    def gradients(model):
        return torch.autograd.grad(model(input_ids=ids, labels=ids).loss, list(edits.module.parameters()))

    for a, b in zip(gradients(compiled), gradients(llama), strict=True):
        assert torch.allclose(a, b, atol=1e-6)


@pytest.mark.parametrize("model_type", ["llama", "gemma3n_text"])
def test_reentrant_checkpointing_is_exact_or_refused(model_type):
    model = zoo_model(model_type).train()
    edits, ids = edited(model), zoo_ids(model)
    model.enable_input_require_grads()  # without it, torch says that nothing has a gradient

    def gradients():
        torch.manual_seed(0)
        loss = model(input_ids=ids, use_cache=False).logits.square().mean()
        edits.module.zero_grad()
        loss.backward()
        return [p.grad.clone() for p in edits.vector_parameters()]

    plain = gradients()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": True})
    if edits.spec.no_reentrant:
        with pytest.raises(HeadEditError, match="Reentrant gradient checkpointing gives wrong gradients"):
            gradients()
    else:
        assert all(torch.equal(a, b) for a, b in zip(plain, gradients(), strict=True))
