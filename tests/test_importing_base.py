"""What an import says of a checkpoint's base weights, and the base that it writes with them."""

import logging

import pytest
import safetensors.torch
import torch
from einops import rearrange
from test_importing import HEADS, by_hand, gate, state_dict
from tiny import logits, tiny_model
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from headedit import HeadEditError
from headedit.cli import import_edits
from headedit.edits import load
from headedit.edits.importing.base_weights import compare_base
from headedit.edits.importing.load import import_jola
from headedit.edits.importing.rotary import released_frequencies, rotary_fault

KINDS = {
    "the head": ("llama", "lm_head.weight"),
    "the embedding": ("llama", "model.embed_tokens.weight"),
    "the last norm": ("llama", "model.norm.weight"),
    "a norm of a layer": ("llama", "model.layers.1.input_layernorm.weight"),
    "a projection": ("llama", "model.layers.0.mlp.up_proj.weight"),
    "a bias": ("qwen2", "model.layers.1.self_attn.q_proj.bias"),
}


@pytest.fixture
def arrays():
    generator = torch.Generator().manual_seed(3)

    def draw(*shape):
        return torch.randn(*shape, generator=generator)

    return [
        {"attn_A": draw(HEADS, 16), "attn_v": draw(HEADS, 16), "log_g1": draw(HEADS, 1), "log_g2": draw(HEADS, 1)}
        for _ in range(2)
    ]


def tensors_of(model, arrays):
    """The state dict of a base model with JoLA's tensors."""
    edits = {name: value for name, value in state_dict(arrays).items() if "attn_" in name.rpartition("self_attn")[2]}
    edits |= {name: value for name, value in state_dict(arrays).items() if "log_g" in name}
    return {**{name: value.clone() for name, value in model.state_dict().items()}, **edits}


def write(tensors, folder, form="safetensors"):
    """The path of a checkpoint in one of the forms that training code leaves."""
    folder.mkdir()
    names = sorted(tensors)
    halves = [names[::2], names[1::2]]
    if form == "safetensors":
        safetensors.torch.save_file(tensors, folder / "model.safetensors")
    elif form == "safetensors in parts":
        for i, half in enumerate(halves):
            part = {name: tensors[name] for name in half}
            safetensors.torch.save_file(part, folder / f"model-0000{i + 1}-of-00002.safetensors")
    elif form == "bin in parts":
        for i, half in enumerate(halves):
            part = {name: tensors[name] for name in half}
            torch.save(part, folder / f"pytorch_model-0000{i + 1}-of-00002.bin")
        (folder / "training_args.bin").write_bytes(b"not to be read")
    else:
        torch.save({"step": 3, "model_state_dict": tensors} if form == "wrapped pt" else tensors, folder / "model.pt")
        (folder / "optimizer.pt").write_bytes(b"not to be read")
        (folder / "rng_state.pth").write_bytes(b"not to be read")
    return folder


FORMS = ["safetensors", "safetensors in parts", "bin in parts", "pt", "wrapped pt"]


def run(*words):
    return CliRunner().invoke(import_edits.app, ["jola", *map(str, words)])


@pytest.mark.parametrize("kind", KINDS)
def test_a_base_weight_that_was_trained_is_named_with_how_far_it_moved(kind, arrays, tmp_path):
    model_type, name = KINDS[kind]
    model = tiny_model(model_type)
    tensors = tensors_of(model, arrays)
    change = 0.05 * torch.randn(tensors[name].shape, generator=torch.Generator().manual_seed(0))
    tensors[name] = tensors[name] + change
    found = compare_base(model, write(tensors, tmp_path / "checkpoint"))
    assert [weight.name for weight in found.moved] == [name]
    assert found.moved[0].distance == pytest.approx(float(change.norm()), rel=1e-4)
    assert found.moved[0].largest == pytest.approx(float(change.abs().max()), rel=1e-3)
    assert any(name in line and "moved by" in line for line in found.lines())
    assert (found.same, found.missing, found.unknown, found.untied) == (False, (), (), False)


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_checkpoint_is_compared(form, arrays, tmp_path):
    model = tiny_model("llama")
    tensors = tensors_of(model, arrays)
    same = compare_base(model, write(tensors, tmp_path / "same", form))
    assert same.same
    assert same.compared == len(model.state_dict())
    tensors["lm_head.weight"] += 0.01
    moved = compare_base(model, write(tensors, tmp_path / "moved", form))
    assert [weight.name for weight in moved.moved] == ["lm_head.weight"]


def test_names_with_the_prefix_of_a_wrapper_are_compared(arrays, tmp_path):
    model = tiny_model("llama")
    tensors = {f"module.{name}": value for name, value in tensors_of(model, arrays).items()}
    tensors["module.model.norm.weight"] += 1
    found = compare_base(model, write(tensors, tmp_path / "checkpoint"))
    assert [weight.name for weight in found.moved] == ["model.norm.weight"]
    assert (found.missing, found.unknown) == ((), ())


@pytest.mark.parametrize("saved", ["one name", "both names"])
def test_a_tied_head_that_was_trained_is_named_once(saved, arrays, tmp_path):
    model = tiny_model("llama", tie_word_embeddings=True)
    tensors = tensors_of(model, arrays)
    tensors["model.embed_tokens.weight"] = tensors["model.embed_tokens.weight"] + 0.1
    if saved == "one name":
        del tensors["lm_head.weight"]
    else:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    found = compare_base(model, write(tensors, tmp_path / "checkpoint"))
    assert [weight.name for weight in found.moved] == ["model.embed_tokens.weight"]
    assert (found.missing, found.untied) == ((), False)


def test_a_rounded_base_has_not_moved_and_a_step_below_its_dtype_has(arrays, tmp_path):
    model = tiny_model("llama")
    short = {name: value.bfloat16() for name, value in tensors_of(model, arrays).items()}
    found = compare_base(model, write(short, tmp_path / "rounded"))
    assert found.same
    assert found.rounded > 0
    model = model.bfloat16()
    long = {name: value.float() for name, value in tensors_of(model, arrays).items()}
    long["lm_head.weight"] *= 1 + 1e-5
    found = compare_base(model, write(long, tmp_path / "longer"))
    assert [weight.name for weight in found.moved] == ["lm_head.weight"]


def test_what_is_missing_unknown_or_of_another_shape_is_named(arrays, tmp_path):
    model = tiny_model("llama")
    tensors = tensors_of(model, arrays)
    del tensors["model.norm.weight"]
    tensors["model.layers.0.mlp.mlp_A.0"] = torch.ones(3)
    tensors["model.layers.0.mlp.up_proj.weight"] = torch.ones(2, 2)
    folder = write(tensors, tmp_path / "checkpoint")
    found = compare_base(model, folder)
    assert found.missing == ("model.norm.weight",)
    assert found.unknown == ("model.layers.0.mlp.mlp_A.0",)
    text = "\n".join(found.lines())
    assert "model.layers.0.mlp.up_proj.weight has the shape (2, 2)" in text
    model.save_pretrained(tmp_path / "base")
    done = run(folder, "--model", tmp_path / "base", "--output", tmp_path / "out", "--with-base", tmp_path / "new")
    assert isinstance(done.exception, HeadEditError)
    assert "cannot be written with the weights of this checkpoint" in str(done.exception)
    assert not (tmp_path / "new").exists()


def test_rows_that_the_checkpoint_lacks_are_not_said_to_be_added(arrays, tmp_path):
    model = tiny_model("llama")
    tensors = tensors_of(model, arrays)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        tensors[name] = tensors[name][:-3].clone()
    lines = compare_base(model, write(tensors, tmp_path / "checkpoint")).lines()
    assert sum("has 3 rows fewer" in line for line in lines) == 2
    assert "Only the number of rows differs" in lines[-1]
    assert not any("added" in line for line in lines)


def test_many_weights_of_a_kind_take_one_line_and_another_base_is_suspected(arrays, tmp_path):
    model = tiny_model("llama", num_hidden_layers=13)
    tensors = {name: value + 0.1 for name, value in tensors_of(model, arrays).items()}
    lines = compare_base(model, write(tensors, tmp_path / "checkpoint")).lines()
    assert sum("input_layernorm" in line for line in lines) == 1
    assert any("model.layers.*.input_layernorm.weight: 13 tensors" in line for line in lines)
    assert "is this the base that the edits were trained on?" in lines[-1]


@pytest.mark.parametrize("kind", [*KINDS, "tied", "untied by training", "a new token"])
def test_the_written_base_with_the_edits_computes_what_the_checkpoint_computes(kind, arrays, ids, tmp_path):
    model_type, name = KINDS.get(kind, ("llama", "lm_head.weight"))
    changes = {"hidden_size": 64, "tie_word_embeddings": "tied" in kind}
    tiny_model(model_type, **changes).save_pretrained(tmp_path / "base")
    trained = tiny_model(model_type, **changes)
    if kind == "untied by training":
        trained.lm_head.weight = torch.nn.Parameter(trained.lm_head.weight.detach().clone())
        trained.config.tie_word_embeddings = False
    if kind == "a new token":
        trained.resize_token_embeddings(trained.config.vocab_size + 1)
    with torch.no_grad():
        trained.get_parameter(name if kind != "tied" else "model.embed_tokens.weight").add_(0.2)
    tensors = tensors_of(trained, arrays)
    if kind == "tied":
        del tensors["lm_head.weight"]
    folder = write(tensors, tmp_path / "checkpoint")
    done = run(folder, "--model", tmp_path / "base", "--output", tmp_path / "out", "--with-base", tmp_path / "new")
    assert done.exit_code == 0, done.exception
    written = AutoModelForCausalLM.from_pretrained(tmp_path / "new").eval()
    assert torch.equal(logits(written, ids), logits(trained, ids))
    load(written, tmp_path / "out")
    torch.testing.assert_close(logits(written, ids), edited_by_hand(trained, arrays, ids), rtol=1e-5, atol=1e-5)


def edited_by_hand(model, arrays, ids):
    for layer, block in enumerate(model.model.layers):

        def edited(module, args, parts=arrays[layer]):
            z = rearrange(args[0], "... (heads width) -> ... heads width", heads=HEADS)
            z = (1 + gate(parts["log_g2"]) * parts["attn_A"]) * z + gate(parts["log_g1"]) * parts["attn_v"]
            return (rearrange(z, "... heads width -> ... (heads width)"),)

        block.self_attn.o_proj.register_forward_pre_hook(edited)
    return logits(model, ids)


def test_a_base_of_fewer_digits_than_the_trained_weights_is_written_in_float32(arrays, tmp_path):
    model = tiny_model("llama").bfloat16()
    model.save_pretrained(tmp_path / "base")
    tensors = tensors_of(model, arrays)
    tensors["lm_head.weight"] = tensors["lm_head.weight"].float() * (1 + 1e-5)
    folder = write(tensors, tmp_path / "checkpoint")
    done = run(folder, "--model", tmp_path / "base", "--output", tmp_path / "out", "--with-base", tmp_path / "new")
    assert done.exit_code == 0, done.exception
    written = AutoModelForCausalLM.from_pretrained(tmp_path / "new")
    assert torch.equal(written.lm_head.weight, tensors["lm_head.weight"])


def test_the_command_names_the_weight_offers_the_base_and_is_silent_of_one_that_is_the_same(arrays, tmp_path):
    model = tiny_model("llama")
    model.save_pretrained(tmp_path / "base")
    tensors = tensors_of(model, arrays)
    given = ["--model", tmp_path / "base", "--output"]
    same = run(write(tensors, tmp_path / "same"), *given, tmp_path / "a")
    assert "21 compared, 21 as in the base\n" in same.stdout
    assert "--with-base" not in same.stdout
    tensors["lm_head.weight"] *= 1.5
    moved = run(write(tensors, tmp_path / "moved"), *given, tmp_path / "b")
    assert "20 as in the base, 1 different" in moved.stdout
    assert "lm_head.weight moved by 50.00%" in moved.stdout
    assert "run this again with --with-base FOLDER." in moved.stdout


def test_python_warns_of_what_the_command_prints(arrays, tmp_path, caplog):
    model = tiny_model("llama")
    tensors = tensors_of(model, arrays)
    tensors["lm_head.weight"] *= 1.5
    folder = write(tensors, tmp_path / "checkpoint")
    with caplog.at_level(logging.WARNING):
        import_jola(model, folder, compare=False)
        assert not caplog.messages
        model.headedit  # noqa: B018, the edits are there
        import_jola(tiny_model("llama"), folder)
    assert "lm_head.weight moved by 50.00%" in caplog.text


ROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}}


def test_the_rotary_fault_of_the_released_llama_is_named_for_bases_that_it_concerns():
    said = rotary_fault(tiny_model("llama", **ROPE))
    assert "ignores rope_theta and rope_scaling" in said
    assert "this base has a base of 500,000" in said
    assert "of its 8 rotations are off by more than a quarter turn" in said
    scaled = {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}
    assert "scaling of the type linear" in rotary_fault(tiny_model("llama", rope_parameters=scaled))
    assert rotary_fault(tiny_model("llama")) is None
    assert rotary_fault(tiny_model("qwen2", **ROPE)) is None


def test_the_base_is_written_with_the_rotary_embedding_of_the_released_llama(arrays, ids, tmp_path):
    tiny_model("llama", **ROPE).save_pretrained(tmp_path / "base")
    folder = write(tensors_of(tiny_model("llama"), arrays), tmp_path / "checkpoint")
    given = [folder, "--model", tmp_path / "base", "--output", tmp_path / "out"]
    said = run(*given)
    assert "ignores rope_theta" in said.stdout
    assert "--with-base FOLDER --released-rotary." in " ".join(said.stdout.split())
    done = run(*given, "--with-base", tmp_path / "new", "--released-rotary")
    assert done.exit_code == 0, done.exception
    written = AutoModelForCausalLM.from_pretrained(tmp_path / "new").eval()
    assert torch.allclose(written.model.rotary_emb.inv_freq.double(), released_frequencies(16), rtol=1e-6)
    load(written, tmp_path / "out")

    def released(layer, z):
        parts = arrays[layer]
        return (1 + gate(parts["log_g2"]) * parts["attn_A"]) * z + gate(parts["log_g1"]) * parts["attn_v"]

    torch.testing.assert_close(logits(written, ids), by_hand(ids, released), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--released-rotary"], "is about the base that --with-base FOLDER writes"),
        (["--with-base", "new", "--released-rotary"], "computes rotary embeddings of .* as transformers does"),
        (["--with-base", "base"], "already exists and is not an empty folder"),
    ],
)
def test_options_that_mean_nothing_are_refused(options, message, arrays, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny_model("llama").save_pretrained("base")
    folder = write(tensors_of(tiny_model("llama"), arrays), tmp_path / "checkpoint")
    done = run(folder, "--model", "base", "--output", "out", *options)
    with pytest.raises(HeadEditError, match=message):
        raise done.exception
