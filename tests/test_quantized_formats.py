"""Works with: GGUF files, unpacked and in blocks, torchao's int8 and int4, and HQQ."""

import importlib.util
import json
from types import SimpleNamespace

import pytest
import torch
from third_party import edited
from tiny import logits, randomise, tiny_model
from torch import nn
from transformers import AutoModelForCausalLM, Lfm2Config, Lfm2ForCausalLM

import headedit
from headedit import HeadEditError
from headedit.hf.digest import weights_digest
from headedit.hf.quantized import differentiable

gguf = pytest.importorskip("gguf")
ROWS = [{"input_ids": [3, 4, 5], "labels": [-100, 4, 5]}] * 8
SHORT = {"epochs": 1, "search_epochs": 1, "min_steps": 1, "dropout": 0.0, "progress": False}
EXACT = [gguf.GGMLQuantizationType.Q8_0, gguf.GGMLQuantizationType.Q4_0]


def write_gguf(model, path, blocks, arch, names, permuted=()):
    """Writes a tiny model as a GGUF file; the matrices are quantized."""
    config = model.config
    writer = gguf.GGUFWriter(str(path), arch)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    counts = config.num_key_value_heads
    if arch == "lfm2":
        counts = [counts if kind == "full_attention" else 0 for kind in config.layer_types]
        writer.add_shortconv_l_cache(config.conv_L_cache)
    writer.add_head_count_kv(counts)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(config.vocab_size)
    tokens = ["<unk>", "<s>", "</s>", *(chr(0x2581) + f"t{i}" for i in range(config.vocab_size - 3))]
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([-float(i) for i in range(len(tokens))])
    writer.add_token_types([2, 3, 3] + [1] * (len(tokens) - 3))
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    table = gguf.get_tensor_name_map(names, config.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        values = tensor.float().numpy()
        if name.endswith(permuted):  # llama.cpp interleaves the halves of each head for its rotary embedding
            heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
            values = values.reshape(heads, 2, -1, values.shape[1]).swapaxes(1, 2).reshape(values.shape)
        key = table.get_name(name, try_suffixes=(".weight", ".bias"))
        if values.ndim == 3:
            values = values.squeeze(1)
        if values.ndim == 2 and "conv.conv" not in name:
            writer.add_tensor(key, gguf.quants.quantize(values, blocks), raw_dtype=blocks)
        else:
            writer.add_tensor(key, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_llama(path, blocks=gguf.GGMLQuantizationType.Q8_0):
    model = tiny_model("llama", hidden_size=64, intermediate_size=64)
    write_gguf(model, path, blocks, "llama", gguf.MODEL_ARCH.LLAMA, ("q_proj.weight", "k_proj.weight"))
    return model


@pytest.fixture
def lfm2_file(tmp_path):
    """A GGUF file of a type whose weights transformers leaves in their blocks."""
    torch.manual_seed(0)
    config = Lfm2Config(
        vocab_size=128,
        hidden_size=64,
        intermediate_size=64,
        block_auto_adjust_ff_dim=False,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        layer_types=["conv", "full_attention"],
        max_position_embeddings=64,
    )
    path = tmp_path / "lfm2.gguf"
    write_gguf(Lfm2ForCausalLM(config), path, EXACT[0], "lfm2", gguf.MODEL_ARCH.LFM2)
    return path


@pytest.fixture
def kernel(monkeypatch):
    """In place of the hub's kernel, one that multiplies by unpacked blocks and has no gradient, as that one."""
    kernels = pytest.importorskip("transformers.integrations.gguf.kernels")

    @torch.no_grad()
    def mul_mat_vec(weight, x, ggml_type, rows):
        return x @ kernels.dequantize(weight, ggml_type, x.dtype).reshape(rows, -1).T

    monkeypatch.setattr(kernels, "_gguf_kernel", SimpleNamespace(supports=lambda _: True, mul_mat_vec=mul_mat_vec))


def check_gradients(model, edits, ids):
    model.train()
    with differentiable(model):
        model(input_ids=ids, labels=ids).loss.backward()
    model.eval()
    assert all((p.grad != 0).any() for p in edits.vector_parameters())
    edits.module.zero_grad()


def check_format(model, ids, folder):
    """Attaches, trains, evaluates, saves, detaches and loads; the base is the same to the bit."""
    base = logits(model, ids)
    edits = headedit.attach(model)
    assert torch.equal(logits(model, ids), base)
    randomise(edits)
    check_gradients(model, edits, ids)
    run = headedit.fit(edits, ROWS, ROWS, output_dir=folder, **SHORT)
    assert run.record["held_out"]["edited"] > 0
    wanted = logits(model, ids)
    with edits.disable_adapter():
        assert torch.equal(logits(model, ids), base)
    assert not torch.equal(wanted, base)
    edits.detach()
    assert torch.equal(logits(model, ids), base)
    edits = headedit.load(model, folder)
    assert torch.equal(logits(model, ids), wanted)
    return edits


@pytest.mark.parametrize("blocks", EXACT, ids=lambda b: b.name)
def test_a_gguf_file_is_unpacked_edited_trained_and_merged(blocks, ids, tmp_path):
    plain = write_llama(tmp_path / "llama.gguf", blocks)
    model = headedit.load_model(tmp_path / "llama.gguf", dtype="float32", device="cpu")
    near = 0.02 if blocks.name == "Q8_0" else 0.2
    assert torch.allclose(logits(model, ids), logits(plain, ids), atol=near)
    edits = check_format(model, ids, tmp_path / "out")
    wanted = logits(model, ids)
    merged = edits.merge_and_unload()
    assert torch.allclose(logits(merged, ids), wanted, atol=1e-5)
    merged.save_pretrained(tmp_path / "merged")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert torch.equal(logits(again, ids), logits(merged, ids))


def test_a_run_takes_a_gguf_file_by_its_path_or_by_the_key_of_transformers(tmp_path):
    write_llama(tmp_path / "llama.gguf")
    (tmp_path / "data.json").write_text(json.dumps([{"prompt": "t1 t2", "response": "t3"}] * 8))
    for i, model in enumerate([{"name": f"{tmp_path}/llama.gguf"}, {"name": str(tmp_path), "gguf_file": "llama.gguf"}]):
        config = {"model": model | {"device": "cpu"}, "data": {"train": f"{tmp_path}/data.json", "valid": 4}}
        config |= {"recipe": {"name": "ungated", "epochs": 1, "min_steps": 1, "batch_size": 4}}
        run = headedit.train(config, output=str(tmp_path / f"out{i}"), progress=False)
        assert run.record["steps"] >= 1
        assert run.record["base_model"] == "llama.gguf"


def test_a_gguf_file_in_blocks_is_edited_trained_and_not_merged(kernel, lfm2_file, ids, tmp_path):
    model = headedit.load_model(lfm2_file, dtype="float32", device="cpu", quantization="gguf")
    assert type(model.model.layers[1].self_attn.out_proj).__name__ == "GgufLinear"
    unpacked = headedit.load_model(lfm2_file, dtype="float32", device="cpu")
    assert torch.allclose(logits(model, ids), logits(unpacked, ids), atol=1e-5)
    edits = check_format(model, ids, tmp_path / "out")
    with pytest.raises(
        HeadEditError, match=r"GGUF blocks\)\. Load the file with its weights unpacked.*and merge there"
    ):
        edits.merge_adapter()
    on_unpacked = headedit.load(unpacked, tmp_path / "out")
    assert torch.allclose(logits(model, ids), logits(unpacked, ids), atol=1e-5)
    assert on_unpacked.active_adapter == edits.active_adapter


def test_gradients_flow_through_blocks_for_inputs_of_any_length(kernel, lfm2_file):
    model = headedit.load_model(lfm2_file, dtype="float32", device="cpu", quantization="gguf")
    unpacked = headedit.load_model(lfm2_file, dtype="float32", device="cpu")
    for length in (2, 8, 9):
        ids, found = torch.arange(3, 3 + length)[None], []
        for each in (model, unpacked):
            edits = edited(each)
            with differentiable(each):
                each(input_ids=ids, labels=ids).loss.backward()
            found.append([p.grad.clone() for p in edits.vector_parameters()])
            edits.detach()
        assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(*found, strict=True))
    assert all("forward" not in vars(module) for module in model.modules())


def test_experts_in_blocks_are_refused_before_training(llama, tmp_path):
    experts = pytest.importorskip("transformers.integrations.gguf.utils").GgufExperts
    llama.model.layers[1].mlp.experts = experts(2, 32, 32, int(EXACT[0]), int(EXACT[0]), nn.SiLU())
    with pytest.raises(HeadEditError, match=r"No gradient flows through .*mlp\.experts.* GGUF blocks.*dequantize=True"):
        headedit.fit(headedit.attach(llama), ROWS, ROWS, output_dir=tmp_path, **SHORT)


def test_a_quantization_that_a_file_cannot_have_is_refused_by_name(lfm2_file, tmp_path):
    for name, quantization, message in (
        (lfm2_file, "int8", r"found 'int8' for the GGUF file .* expected gguf"),
        (tmp_path, "gguf", r"gguf is for a GGUF file, and '.*' is none"),
        (tmp_path, "int9", r"quantization: found 'int9' .* Did you mean 'int8'"),
        (tmp_path / "none.gguf", None, r"No model could be loaded from '.*none\.gguf'"),
    ):
        with pytest.raises(HeadEditError, match=message):
            headedit.load_model(name, quantization=quantization)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"name": "m", "quantization": "int9"}, r"model: quantization: found 'int9' .* Did you mean 'int8'"),
        ({"name": "m", "quantization": "ggml"}, r"model: quantization: .* expected one of 4bit, .* gguf"),
        ({"name": "m", "gguf_file": "model.bin"}, r"gguf_file: found 'model\.bin' in 'm', expected"),
        ({"name": "m/a.gguf", "gguf_file": "b.gguf"}, r"gguf_file: found 'b\.gguf' in 'm/a\.gguf', expected"),
    ],
)
def test_a_run_that_names_no_such_quantization_or_file_says_so(section, message, tmp_path):
    with pytest.raises(HeadEditError, match=message):
        headedit.train({"model": section, "data": {"train": "d.json"}}, output=str(tmp_path / "out"))


@pytest.fixture
def torchao():
    return pytest.importorskip("torchao.quantization")


@pytest.mark.parametrize("quantization", ["int8", "int4"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weights_quantized_by_torchao_are_edited_trained_and_not_merged(torchao, quantization, dtype, ids, tmp_path):
    tiny_model("llama", hidden_size=64, intermediate_size=64).save_pretrained(tmp_path)
    model = headedit.load_model(str(tmp_path), quantization=quantization, dtype=dtype, device="cpu")
    assert type(model.model.layers[0].self_attn.o_proj.weight).__module__.startswith("torchao")
    edits = check_format(model, ids, tmp_path / "out")
    with pytest.raises(HeadEditError, match=r"quantized \(Linear, torchao's \w+\)\. Load the base model in full"):
        edits.merge_adapter()


def test_weights_quantized_in_place_by_torchao_are_edited_trained_and_not_merged(torchao, ids, tmp_path):
    model = tiny_model("llama", hidden_size=64, intermediate_size=64)
    torchao.quantize_(model, torchao.Int8WeightOnlyConfig())
    edits = check_format(model, ids, tmp_path / "out")
    with pytest.raises(HeadEditError, match=r"quantized \(Linear, torchao's \w+\)\. Load the base model in full"):
        edits.merge_adapter()


def test_layers_without_a_gradient_are_refused_before_training(torchao, tmp_path):
    model = tiny_model("llama", hidden_size=64, intermediate_size=64)
    torchao.quantize_(model, torchao.Int8DynamicActivationInt8WeightConfig())
    with pytest.raises(HeadEditError, match=r"No gradient flows through .*_proj, .* Int8WeightOnlyConfig"):
        headedit.fit(headedit.attach(model), ROWS, ROWS, output_dir=tmp_path, **SHORT)


@pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("hqq", "termcolor")), reason="hqq is not installed"
)
def test_weights_quantized_by_hqq_are_edited_trained_and_not_merged(ids, tmp_path):
    from hqq.core.quantize import BaseQuantizeConfig, HQQLinear

    model = tiny_model("llama", hidden_size=64, intermediate_size=64)
    for name, module in list(model.named_modules()):
        if type(module) is nn.Linear and name != "lm_head":
            config = BaseQuantizeConfig(nbits=4, group_size=64)
            model.set_submodule(name, HQQLinear(module, config, compute_dtype=torch.float32, device="cpu"))
    edits = check_format(model, ids, tmp_path / "out")
    with pytest.raises(HeadEditError, match=r"quantized \(HQQLinear, HQQ\)\. Load the base model in full precision"):
        edits.merge_adapter()
    before = weights_digest(model)
    model.model.layers[0].self_attn.o_proj.meta["scale"].mul_(2)
    assert weights_digest(model) != before
