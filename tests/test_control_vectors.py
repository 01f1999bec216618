"""Offsets as a control vector of llama.cpp, which adds it after whole layers: written where it is the same function."""

import pytest
import torch
from tiny import logits, tiny_model
from typer.testing import CliRunner

import headedit
from headedit import EditConfig, HeadEditError
from headedit.cli.main import app

gguf = pytest.importorskip("gguf")

SIDE_BY_SIDE = ["gpt_neox", "cohere", "falcon"]
"""Types whose attention and MLP read the same hidden states, with their lists of layers."""
LAYERS = {"gpt_neox": "gpt_neox.layers", "cohere": "model.layers", "falcon": "transformer.h"}


def edited(model_type="gpt_neox", **changes):
    """Offsets of two heads behind the first layer; the rest does nothing."""
    edits = headedit.attach(tiny_model(model_type, **changes), config=EditConfig(vectors="offset", layers="1:"))
    width, generator = edits.sites[0].head_dim, torch.Generator().manual_seed(0)
    for site, head in ((edits.sites[0], 1), (edits.sites[-1], 3)):
        edits.set_head(site.layer, head, offset=torch.randn(width, generator=generator))
    return edits


def read(path):
    reader = gguf.GGUFReader(str(path))
    return {t.name: torch.tensor(t.data) for t in reader.tensors}, {
        name: field.contents() for name, field in reader.fields.items()
    }


@pytest.mark.parametrize("model_type", SIDE_BY_SIDE)
def test_vectors_after_the_layers_give_the_logits_of_the_edits_where_attention_and_mlp_stand_side_by_side(
    model_type, ids, tmp_path
):
    layers = {"n_layer" if model_type == "gpt2" else "num_hidden_layers": 3}
    edits = edited(model_type, **layers)
    wanted = logits(edits.model, ids)
    assert edits.to_control_vector(tmp_path / "v.gguf") == 0
    assert torch.equal(logits(edits.model, ids), wanted)  # writing changes nothing
    tensors, _ = read(tmp_path / "v.gguf")
    plain = tiny_model(model_type, **layers)
    assert not torch.allclose(logits(plain, ids), wanted, atol=1e-2)
    for name, vector in tensors.items():
        layer = plain.get_submodule(f"{LAYERS[model_type]}.{name.removeprefix('direction.')}")
        layer.register_forward_hook(
            lambda m, a, out, v=vector: (out[0] + v, *out[1:]) if isinstance(out, tuple) else out + v
        )
    assert torch.allclose(logits(plain, ids), wanted, atol=1e-5)


def test_the_file_has_the_layout_that_llama_cpp_reads(tmp_path):
    edited(num_hidden_layers=3).to_control_vector(tmp_path / "new" / "v.gguf")
    tensors, fields = read(tmp_path / "new" / "v.gguf")
    assert fields["general.architecture"] == "controlvector"
    assert fields["controlvector.model_hint"] == "gpt_neox"
    assert fields["controlvector.layer_count"] == 2
    assert list(tensors) == ["direction.1", "direction.2"]
    assert {(t.dtype, tuple(t.shape)) for t in tensors.values()} == {(torch.float32, (32,))}


@pytest.mark.parametrize("model_type", ["llama", "qwen2", "gemma2", "olmo2", "opt", "mixtral"])
@pytest.mark.parametrize("size", [1.0, 1e-3])
def test_where_the_mlp_reads_the_offset_it_is_refused_with_how_far_it_is_off_and_the_way_out(
    model_type, size, tmp_path
):
    edits = edited(model_type)
    with torch.no_grad():
        for vector in edits.vector_parameters():
            vector.mul_(size)
    with pytest.raises(HeadEditError, match=r"whole layer.*off by [\d.]+% of what.*headedit merge.*convert_hf_to_gguf"):
        edits.to_control_vector(tmp_path / "v.gguf")
    assert not (tmp_path / "v.gguf").exists()
    assert edits.to_control_vector(tmp_path / "v.gguf", approximate=True) > 1e-4
    assert (tmp_path / "v.gguf").exists()


def test_the_share_that_is_reported_is_that_of_the_logits(ids, tmp_path):
    edits = edited("gemma2")
    share = edits.to_control_vector(tmp_path / "v.gguf", approximate=True)
    wanted = logits(edits.model, ids)
    tensors, _ = read(tmp_path / "v.gguf")
    with edits.disable_adapter():
        base = logits(edits.model, ids)
        hook = edits.model.model.layers[1].register_forward_hook(
            lambda m, a, out: (
                (out[0] + tensors["direction.1"],) if isinstance(out, tuple) else out + tensors["direction.1"]
            )
        )
        found = logits(edits.model, ids)
        hook.remove()
    assert float((found - wanted).abs().max() / (wanted - base).abs().max()) == pytest.approx(share, rel=0.5)


def test_a_scale_is_refused_by_name(tmp_path):
    edits = headedit.attach(tiny_model("gpt_neox"))
    edits.set_head(1, 0, scale=0.0)
    with pytest.raises(HeadEditError, match=r"layers\.1\.attention\.dense have a scale.*vectors='offset'"):
        edits.to_control_vector(tmp_path / "v.gguf")


def test_an_offset_of_the_first_layer_is_refused_by_name(tmp_path):
    edits = headedit.attach(tiny_model("gpt_neox"))
    edits.set_head(0, 0, offset=torch.ones(8))
    with pytest.raises(HeadEditError, match=r"layers\.0\.attention\.dense are at the first layer.*layers='1:'"):
        edits.to_control_vector(tmp_path / "v.gguf", approximate=True)


def test_a_model_whose_rounding_hides_the_answer_is_refused(tmp_path):
    edits = edited()
    edits.model.to(torch.bfloat16)
    with pytest.raises(HeadEditError, match=r"is in bfloat16.*dtype='float32'"):
        edits.to_control_vector(tmp_path / "v.gguf")


def test_edits_that_do_nothing_are_a_vector_of_zeros(tmp_path):
    headedit.attach(tiny_model("llama")).to_control_vector(tmp_path / "v.gguf")
    tensors, _ = read(tmp_path / "v.gguf")
    assert list(tensors) == ["direction.1"]
    assert not tensors["direction.1"].any()


def test_a_folder_in_the_place_of_the_file_is_an_error_that_says_so(tmp_path):
    with pytest.raises(HeadEditError, match=r"cannot be written \(Is a directory\)"):
        edited().to_control_vector(tmp_path)


def invoke(*arguments):
    result = CliRunner().invoke(app, ["convert", *map(str, arguments)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.output


def saved(edits, folder):
    edits.save_pretrained(folder / "edits")
    edits.detach().save_pretrained(folder / "base")
    return folder / "base", folder / "edits"


def test_the_command_writes_each_form(tmp_path):
    base, edits = saved(edited(), tmp_path)
    assert "the same function" in invoke(base, edits, tmp_path / "v.gguf", "--to", "control-vector")
    assert list(read(tmp_path / "v.gguf")[0]) == ["direction.1"]
    invoke(base, edits, tmp_path / "peft", "--to", "peft")
    assert (tmp_path / "peft" / "adapter_model.safetensors").exists()
    with pytest.raises(HeadEditError, match="have an offset"):
        invoke(base, edits, tmp_path / "lora", "--to", "lora")
    with pytest.raises(HeadEditError, match=r"v\.gguf: already exists"):
        invoke(base, edits, tmp_path / "v.gguf", "--to", "control-vector")
    with pytest.raises(HeadEditError, match="only for --to control-vector"):
        invoke(base, edits, tmp_path / "lora", "--to", "lora", "--approximate")


def test_the_command_says_how_far_an_approximate_vector_is_off(tmp_path):
    base, edits = saved(edited("llama"), tmp_path)
    with pytest.raises(HeadEditError, match="--approximate"):
        invoke(base, edits, tmp_path / "v.gguf", "--to", "control-vector")
    assert "of what the edits change" in invoke(
        base, edits, tmp_path / "v.gguf", "--to", "control-vector", "--approximate"
    )
