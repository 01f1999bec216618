"""The handle: what it says of its edits, and edits set by hand."""

import re

import pytest
import torch
from tiny import logits

import headedit
from headedit import EditConfig, HeadEditError


def test_an_edit_by_hand_is_exactly_scale_and_offset(llama, ids):
    seen, edited = [], []
    projection = llama.model.layers[1].self_attn.o_proj
    projection.register_forward_pre_hook(lambda m, args: seen.append(args[0].clone()))
    edits = headedit.attach(llama)
    projection.register_forward_pre_hook(lambda m, args: edited.append(args[0].clone()))
    offset = torch.randn(16)
    edits.set_head(1, 3, scale=0.25, offset=offset)
    logits(llama, ids)
    before, after = seen[0].view(2, 7, 4, 16), edited[0].view(2, 7, 4, 16)
    assert torch.equal(after[:, :, 3], torch.addcmul(offset, before[:, :, 3], torch.tensor(0.25)))
    assert torch.equal(after[:, :, :3], before[:, :, :3])


@pytest.mark.parametrize("config", [{}, {"gates": "shared"}, {"gates": "none"}, {"eval_gate": "expectation"}])
def test_ablating_is_exact_in_training_and_eval_and_replaces_what_was_there(llama, ids, config):
    edits = headedit.attach(llama, config=EditConfig(init_std=0.5, **config))
    edits.set_head(0, 2, scale=0.0)
    for mode in (True, False):
        edits.module.train(mode)
        z = edits.module.site_edits[0](torch.randn(1, 3, 64)).view(1, 3, 4, 16)
        assert (z[:, :, 2] == 0).all()
        assert (z[:, :, 1] != 0).any()
    edits.set_head(0, 2)
    z = torch.randn(1, 3, 64)
    assert torch.equal(edits.module.site_edits[0](z).view(1, 3, 4, 16)[:, :, 2], z.view(1, 3, 4, 16)[:, :, 2])


def test_hand_set_gates_are_open_only_for_the_part_that_acts(llama):
    edits = headedit.attach(llama)
    for layer in range(2):
        for head in range(4):
            edits.set_head(layer, head)
    assert edits.count_open() == {"offset": (0, 8), "scale": (0, 8), "any": (0, 8)}
    edits.set_head(0, 1, scale=0.5)
    edits.set_head(1, 1, offset=torch.ones(16))
    edits.set_head(1, 2, offset=torch.ones(16), scale=2.0)
    assert edits.count_open() == {"offset": (2, 8), "scale": (2, 8), "any": (3, 8)}
    gates = edits.gates()
    assert gates.offset.tolist() == [[0, 0, 0, 0], [0, 1, 1, 0]]
    assert gates.scale.tolist() == [[0, 1, 0, 0], [0, 0, 1, 0]]
    assert repr(edits) == ("HeadEdits(LlamaForCausalLM, 2 layers, attention; gates open: offset 2 of 8, scale 2 of 8)")
    edits.detach()
    assert repr(edits).endswith(", detached)")


@pytest.mark.parametrize(
    ("config", "arguments", "message"),
    [
        ({}, {"layer": 0, "head": 4}, r"no head 4 in layer 0 to set: the layer has 4 heads, 0 to 3"),
        ({}, {"layer": 0, "head": -5}, r"no head -5 in layer 0"),
        ({}, {"layer": 9, "head": 0}, r"the layer has no attention site; edited layers: \[0, 1\]"),
        ({}, {"layer": 0, "head": 0, "offset": torch.ones(4)}, r"offset: found shape \(4,\), expected \(16,\)"),
        ({"vectors": "offset"}, {"layer": 0, "head": 0, "scale": 0.0}, r"These edits have no scale"),
        ({"vectors": "scale"}, {"layer": 0, "head": 0, "offset": torch.ones(16)}, r"These edits have no offset"),
        ({}, {"layer": 0, "head": 0, "kind": "mlp"}, r"the layer has no mlp site"),
    ],
)
def test_setting_a_head_that_does_not_exist_is_refused(llama, config, arguments, message):
    edits = headedit.attach(llama, config=EditConfig(**config))
    before = [p.clone() for p in edits.module.parameters()]
    with pytest.raises(HeadEditError, match=message):
        edits.set_head(arguments.pop("layer"), arguments.pop("head"), **arguments)
    assert all(torch.equal(a, b) for a, b in zip(before, edits.module.parameters(), strict=True))


def test_gates_are_nan_where_there_is_no_head_or_no_vector(llama):
    gates = headedit.attach(llama, config=EditConfig(layers=[0], vectors="offset")).gates()
    assert torch.isnan(gates.offset).tolist() == [[False] * 4, [True] * 4]
    assert torch.isnan(gates.scale).all()


def test_parameters_are_counted_and_printed_as_peft_does(llama, capsys):
    base = sum(p.numel() for p in llama.parameters())
    edits = headedit.attach(llama)
    assert edits.get_nb_trainable_parameters() == (2 * (2 * 4 * 16 + 2 * 4), base + 272)
    edits.print_trainable_parameters()
    printed = capsys.readouterr().out.strip()
    assert re.fullmatch(rf"trainable params: 272 \|\| all params: {base + 272:,} \|\| trainable%: 0\.\d{{4}}", printed)
    assert edits.vector_parameters()[0].requires_grad
    assert len(edits.gate_parameters()) == 4


def test_the_published_size_for_an_8b_model():
    """METHOD: L = H = 32, d = 128 has 264,192 parameters; counted on the meta device."""
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = {"num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "hidden_size": 4096}
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(**shape, intermediate_size=14336, vocab_size=128_256))
    trainable, total = headedit.attach(model).get_nb_trainable_parameters()
    assert trainable == 264_192
    assert total - trainable == 8_030_261_248
