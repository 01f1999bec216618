"""Checkpoints of JoLA and LoFiT become edits that compute what their code computes."""

import numpy
import pytest
import safetensors.torch
import torch
from einops import rearrange
from tiny import logits, randomise, tiny_model
from typer.testing import CliRunner

import headedit
from headedit import HeadEditError
from headedit.cli import import_edits
from headedit.edits import load
from headedit.edits.files.header import split_payload
from headedit.edits.importing.load import import_jola, import_lofit, read_lofit

LAYERS, HEADS, WIDTH = 2, 4, 16


@pytest.fixture
def arrays():
    """By layer what JoLA's attention holds, with gates that are open, closed and between."""
    generator = torch.Generator().manual_seed(3)

    def draw(*shape):
        return torch.randn(*shape, generator=generator)

    return [
        {
            "attn_A": draw(HEADS, WIDTH),
            "attn_v": draw(HEADS, WIDTH),
            "log_g1": 3 * draw(HEADS, 1),
            "log_g2": 3 * draw(HEADS, 1),
        }
        for _ in range(LAYERS)
    ]


def state_dict(arrays, form="heads"):
    """The whole model, as the released code saves it, or with its arrays stacked."""
    tensors = dict(tiny_model("llama").state_dict())
    for layer, parts in enumerate(arrays):
        for key, value in parts.items():
            name = f"model.layers.{layer}.self_attn.{key}"
            if form == "heads" and key.startswith("attn"):
                tensors |= {f"{name}.{head}": row.clone() for head, row in enumerate(value)}
            else:
                tensors[name] = value[:, 0].clone() if form == "flat" and key.startswith("log") else value
    return tensors


def write(tensors, folder, kind):
    folder.mkdir(exist_ok=True)
    names = sorted(tensors)
    halves = [names[: len(names) // 2], names[len(names) // 2 :]]
    if kind == "safetensors":
        safetensors.torch.save_file(tensors, folder / "model.safetensors")
    elif kind == "shards":
        for i, half in enumerate(halves):
            safetensors.torch.save_file(
                {n: tensors[n] for n in half}, folder / f"model-0000{i + 1}-of-00002.safetensors"
            )
    else:
        for i, half in enumerate(halves):
            file = folder / f"pytorch_model-0000{i + 1}-of-00002.bin"
            torch.save({n: tensors[n] for n in half}, file, _use_new_zipfile_serialization=kind == "bin")
        (folder / "training_args.bin").write_bytes(b"not to be read")
    return folder


def by_hand(ids, edit):
    """Logits of a fresh model whose heads' outputs z, [..., heads, width], go through ``edit(layer, z)``."""
    model = tiny_model("llama")

    def hook(layer):
        def edited(module, args):
            z = rearrange(args[0], "... (heads width) -> ... heads width", heads=HEADS)
            return (rearrange(edit(layer, z), "... heads width -> ... (heads width)"),)

        return edited

    for layer, block in enumerate(model.model.layers):
        block.self_attn.o_proj.register_forward_pre_hook(hook(layer))
    return logits(model, ids)


def gate(log_gate):
    return (torch.sigmoid(log_gate) * 1.2 - 0.1).clamp(0, 1)


@pytest.mark.parametrize("swap", [False, True])
@pytest.mark.parametrize("kind", ["safetensors", "shards", "bin", "legacy bin"])
@pytest.mark.parametrize("form", ["heads", "stacked", "flat"])
def test_a_jola_checkpoint_computes_what_jola_computes(form, kind, swap, arrays, ids, tmp_path):
    write(state_dict(arrays, form), tmp_path / "checkpoint", kind)
    model = tiny_model("llama")
    edits = import_jola(model, tmp_path / "checkpoint", swap_gates=swap)

    def released(layer, z):
        parts = arrays[layer]
        g1, g2 = gate(parts["log_g1"]), gate(parts["log_g2"])
        if swap:
            g1, g2 = g2, g1
        return (1 + g2 * parts["attn_A"]) * z + g1 * parts["attn_v"]

    torch.testing.assert_close(logits(model, ids), by_hand(ids, released), rtol=1e-5, atol=1e-5)
    assert len(edits.gate_parameters()) == 4
    with edits.disable_adapter():
        assert torch.equal(logits(model, ids), logits(tiny_model("llama"), ids))


def test_one_file_and_a_wrapped_model_are_read_too(arrays, ids, tmp_path):
    tensors = {f"module.{name}": value for name, value in state_dict(arrays).items()}
    folder = write(tensors, tmp_path / "checkpoint", "safetensors")
    first, second = tiny_model("llama"), tiny_model("llama")
    import_jola(first, folder)
    import_jola(second, folder / "model.safetensors")
    assert torch.equal(logits(first, ids), logits(second, ids))


def changed(arrays, what):
    tensors = state_dict(arrays)
    key = "model.layers.1.self_attn."

    def without(*parts):
        return {name: value for name, value in tensors.items() if not any(part in name for part in parts)}

    def also(**values):
        return {**tensors, **{key + name.replace("__", "."): value for name, value in values.items()}}

    cases = {
        "no edits": lambda: without("attn_", "log_g"),
        "no gate": lambda: without("layers.1.self_attn.log_g2"),
        "a layer missing": lambda: without(*(f"layers.1.self_attn.{k}" for k in ("attn_", "log_g"))),
        "a layer more": lambda: {
            **tensors,
            **{n.replace("layers.1", "layers.2"): v.clone() for n, v in tensors.items() if "layers.1.self_attn" in n},
        },
        "a head missing": lambda: without("layers.1.self_attn.attn_v.2"),
        "the last head missing": lambda: without("layers.1.self_attn.attn_v.3"),
        "another width": lambda: also(attn_v__0=torch.zeros(8)),
        "all of another width": lambda: also(**{f"attn_v__{h}": torch.zeros(8) for h in range(4)}),
        "gates of another number": lambda: also(log_g1=torch.zeros(8, 1)),
        "whole numbers": lambda: also(log_g1=torch.zeros(4, 1, dtype=torch.int64)),
        "not a number": lambda: also(log_g1=torch.full((4, 1), torch.nan)),
        "both forms": lambda: also(attn_v=torch.zeros(4, 16)),
    }
    return cases[what]()


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("no edits", r"holds no edits: no tensor is named like model\.layers\.0\.self_attn\.attn_A"),
        ("no gate", r"layer 1 has no log_g2, only attn_A, attn_v, log_g1"),
        ("a layer missing", r"holds edits of the layers 0 to 0, but those of the model are 0 to 1"),
        ("a layer more", r"holds edits of the layers 0 to 2, but those of the model are 0 to 1"),
        ("a head missing", r"layer 1: attn_v: found 3 heads, but not 0 to 2"),
        ("the last head missing", r"layer 1: attn_v: found float32 of shape \(3, 16\), expected .* shape \(4, 16\)"),
        ("another width", r"layer 1: attn_v: the heads have several shapes"),
        ("all of another width", r"layer 1: attn_v: found float32 of shape \(4, 8\), expected .* shape \(4, 16\)"),
        ("gates of another number", r"layer 1: log_g1: found float32 of shape \(8,\), expected .* shape \(4,\)"),
        ("whole numbers", r"layer 1: log_g1: found int64 of shape \(4,\), expected floating-point numbers"),
        ("not a number", r"layer 1: log_g1: holds NaN or infinity"),
        ("both forms", r"layer 1: attn_v: is there both as a whole and by heads"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused_and_the_model_left_alone(what, message, arrays, ids, tmp_path):
    write(changed(arrays, what), tmp_path / "checkpoint", "safetensors")
    model = tiny_model("llama")
    base = logits(model, ids)
    with pytest.raises(HeadEditError, match=message):
        import_jola(model, tmp_path / "checkpoint")
    assert torch.equal(logits(model, ids), base)
    assert not hasattr(model, "headedit")
    assert all(parameter.requires_grad for parameter in model.parameters())


class Dangerous:
    def __reduce__(self):
        return (print, ("this was run",))


def test_nothing_in_a_file_is_run(llama, tmp_path, capsys):
    torch.save({"model.layers.0.self_attn.attn_A": Dangerous()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(HeadEditError, match=r"pytorch_model\.bin: no tensors can be read from it"):
        import_jola(llama, tmp_path)
    numpy.save(tmp_path / "heads.npy", numpy.array([Dangerous()]), allow_pickle=True)
    numpy.save(tmp_path / "offsets.npy", numpy.zeros((1, 16)))
    with pytest.raises(HeadEditError, match=r"heads\.npy: no array can be read"):
        read_lofit([tmp_path / "heads.npy", tmp_path / "offsets.npy"])
    assert "this was run" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("write_it", "message"),
    [
        (lambda f: None, r"holds neither \*\.safetensors nor pytorch_model\*\.bin"),
        (lambda f: (f / "model.safetensors").write_bytes(b"\xff" * 64), r"no tensors can be read from it"),
        (lambda f: (f / "pytorch_model.bin").write_bytes(b"PK\x03\x04" + b"0" * 64), r"no tensors can be read from it"),
        (lambda f: torch.save([1], f / "pytorch_model.bin"), r"holds a list, expected tensors by name"),
        (
            lambda f: torch.save({"model.layers.0.self_attn.log_g1": 3}, f / "pytorch_model.bin"),
            r"log_g1' is a int, expected a dense tensor",
        ),
    ],
)
def test_a_file_that_is_not_a_checkpoint_is_refused(write_it, message, llama, tmp_path):
    write_it(tmp_path)
    with pytest.raises(HeadEditError, match=message):
        import_jola(llama, tmp_path)


HEADS_CHOSEN = [[1, 3], [0, 0], [1, 1]]


@pytest.fixture
def lofit():
    generator = torch.Generator().manual_seed(4)
    return torch.tensor(HEADS_CHOSEN), torch.randn(3, 16, generator=generator), torch.randn(3, 16, generator=generator)


def lofit_by_hand(ids, heads, offsets, scales=None):
    def released(layer, z):
        z = z.clone()
        for row, (where, head) in enumerate(torch.as_tensor(heads).tolist()):
            if where == layer:
                a = 0 if scales is None else scales[row]
                z[..., head, :] = (1 + a) * z[..., head, :] + offsets[row]
        return z

    return by_hand(ids, released)


@pytest.mark.parametrize("with_scales", [False, True])
def test_lofits_arrays_compute_what_lofit_computes(with_scales, lofit, ids, tmp_path):
    heads, offsets, scales = lofit if with_scales else (*lofit[:2], None)
    model = tiny_model("llama")
    edits = import_lofit(model, heads.numpy(), offsets.double(), scales)
    torch.testing.assert_close(logits(model, ids), lofit_by_hand(ids, heads, offsets, scales), rtol=1e-5, atol=1e-5)
    assert edits.count_open()["any"] == (3, 8)
    edits.save_pretrained(tmp_path)
    load(fresh := tiny_model("llama"), tmp_path)
    assert torch.equal(logits(fresh, ids), logits(model, ids))
    _, data = split_payload((tmp_path / "headedit.safetensors").read_bytes())
    assert len(data) < 3 * 16 * 4 * (1 + with_scales) + 100


def write_lofit(folder, heads, offsets, scales, kind):
    """The files of one kind; scales are left out where they are None."""
    named = {"heads": heads, "offsets": offsets, **({} if scales is None else {"scales": scales})}
    if kind == "npy":
        for name, values in named.items():
            numpy.save(folder / f"{name}.npy", values.numpy())
        return [folder / f"{name}.npy" for name in named]
    if kind == "safetensors":
        safetensors.torch.save_file(named, folder / "edits.safetensors")
        return [folder / "edits.safetensors"]
    layers = [{key: torch.zeros(HEADS, WIDTH) for key in ("attn_A", "attn_v")} for _ in range(LAYERS)]
    for row, (layer, head) in enumerate(heads.tolist()):
        layers[layer]["attn_v"][head] = offsets[row]
        layers[layer]["attn_A"][head] = 0 if scales is None else scales[row]
    return [write(state_dict(layers), folder / "checkpoint", "bin")]


@pytest.mark.parametrize("kind", ["npy", "safetensors", "checkpoint"])
@pytest.mark.parametrize("with_scales", [False, True])
def test_the_files_that_lofit_writes_are_read(with_scales, kind, lofit, ids, tmp_path):
    heads, offsets, scales = lofit if with_scales else (*lofit[:2], None)
    model = tiny_model("llama")
    import_lofit(model, *read_lofit(write_lofit(tmp_path, heads, offsets, scales, kind)))
    torch.testing.assert_close(logits(model, ids), lofit_by_hand(ids, heads, offsets, scales), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("heads", "offsets", "message"),
    [
        ([[0, 4]], torch.zeros(1, 16), r"heads\[0\]: found layer 0, head 4; the model has the layers 0 to 1 with 4"),
        ([[0, 1], [2, 0]], torch.zeros(2, 16), r"heads\[1\]: found layer 2, head 0"),
        ([[0, -1]], torch.zeros(1, 16), r"heads\[0\]: found layer 0, head -1"),
        ([[0, 1], [0, 1]], torch.zeros(2, 16), r"head 1 of layer 0 is named twice"),
        ([[0.0, 1.0]], torch.zeros(1, 16), r"heads: found float32 of shape \(1, 2\), expected whole numbers"),
        ([0, 1], torch.zeros(2, 16), r"heads: found int64 of shape \(2,\)"),
        ([], torch.zeros(0, 16), r"heads: found float32 of shape \(0,\)"),
        ([[0, "a"]], torch.zeros(1, 16), r"heads: is not an array of numbers"),
        ([[0, 1]], torch.zeros(1, 8), r"offsets: found float32 of shape \(1, 8\), expected .* of shape \(1, 16\)"),
        ([[0, 1]], torch.full((1, 16), torch.inf), r"offsets: holds NaN or infinity"),
    ],
)
def test_arrays_that_do_not_fit_are_refused_and_the_model_left_alone(heads, offsets, message, llama, ids):
    base = logits(llama, ids)
    with pytest.raises(HeadEditError, match=message):
        import_lofit(llama, heads, offsets)
    assert torch.equal(logits(llama, ids), base)
    assert not hasattr(llama, "headedit")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([], r"Found 0 files, expected \.npy files"),
        (["cut.npy", "huge.npy"], r"cut\.npy: no array can be read"),
        (["huge.npy", "cut.npy"], r"huge\.npy: no array can be read"),
        (["text.npy", "cut.npy"], r"text\.npy: expected one array of numbers"),
        (["zeros"], r"zeros: every attn_v and attn_A is zero"),
    ],
)
def test_files_that_lofit_did_not_write_are_refused(files, message, tmp_path):
    numpy.save(tmp_path / "cut.npy", numpy.zeros((4, 2)))
    (tmp_path / "cut.npy").write_bytes((tmp_path / "cut.npy").read_bytes()[:140])
    header = b"{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000, 2), }".ljust(117) + b"\n"
    (tmp_path / "huge.npy").write_bytes(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)
    numpy.save(tmp_path / "text.npy", numpy.array(["a"]))
    zeros = [{key: torch.zeros(HEADS, WIDTH) for key in ("attn_A", "attn_v")} for _ in range(LAYERS)]
    write(state_dict(zeros), tmp_path / "zeros", "safetensors")
    with pytest.raises(HeadEditError, match=message):
        read_lofit([tmp_path / name for name in files])


def test_a_model_that_has_edits_is_not_imported_over(llama, arrays, ids, tmp_path):
    folder = write(state_dict(arrays), tmp_path / "checkpoint", "safetensors")
    randomise(headedit.attach(llama))
    before = logits(llama, ids)
    with pytest.raises(HeadEditError, match="has edits attached already"):
        import_jola(llama, folder)
    assert torch.equal(logits(llama, ids), before)


@pytest.mark.parametrize("command", ["jola", "lofit"])
def test_the_import_command_writes_edits_that_load(command, arrays, lofit, ids, tmp_path):
    tiny_model("llama").save_pretrained(tmp_path / "model")
    if command == "jola":
        source = write(state_dict(arrays), tmp_path / "checkpoint", "shards")
        wanted = tiny_model("llama")
        import_jola(wanted, source)
        given = [str(source)]
    else:
        wanted = tiny_model("llama")
        import_lofit(wanted, *lofit)
        given = [str(path) for path in write_lofit(tmp_path, *lofit, "npy")]
    options = ["--model", str(tmp_path / "model"), "--output", str(tmp_path / "out")]
    done = CliRunner().invoke(import_edits.app, [command, *given, *options], catch_exceptions=False)
    assert done.exit_code == 0
    assert "edited heads" in done.stdout
    load(fresh := tiny_model("llama"), tmp_path / "out")
    assert torch.equal(logits(fresh, ids), logits(wanted, ids))


@pytest.mark.parametrize("command", [["jola"], ["lofit"]])
def test_the_help_of_the_import_command_has_an_example(command):
    printed = CliRunner().invoke(import_edits.app, [*command, "--help"]).stdout
    assert " ".join(["headedit import", *command]) in " ".join(printed.replace("│", " ").split()).split("Example:")[1]
