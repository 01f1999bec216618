"""The line of an edit and what it keeps: bits and gradients of the plain formula, and nothing stale."""

import copy
import pickle

import pytest
import torch
from test_site_edit import HEADS, WIDTH, by_hand, site_edit
from third_party import edited
from tiny import logits, randomise, tiny_model
from torch import nn

import headedit
from headedit.edits.affine import multiply_add

D = HEADS * WIDTH


def plain(z, scale, offset):
    scale = torch.ones(()) if scale is None else scale
    return torch.addcmul(torch.zeros(()) if offset is None else offset, z, scale).to(z.dtype)


def tensors(shape, dtype, which, broadcast):
    torch.manual_seed(0)
    z = torch.randn(shape).to(dtype).requires_grad_()
    scale, offset = (torch.randn(broadcast).requires_grad_() if name in which else None for name in ("scale", "offset"))
    return z, scale, offset


@pytest.mark.parametrize("which", [("scale", "offset"), ("scale",), ("offset",)], ids="+".join)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("shape", "broadcast"),
    [((2, 5, D), (D,)), ((D,), (D,)), ((2, 5, 2, D // 2), (2, D // 2)), ((3, 1, 5, D), (3, 1, 1, D))],
    ids=["batch", "one", "groups", "routed"],
)
def test_bits_and_gradients_are_autograds_own(which, dtype, shape, broadcast):
    inputs = tensors(shape, dtype, which, broadcast)
    out, wanted = multiply_add(*inputs), plain(*inputs)
    assert out.dtype == dtype
    assert torch.equal(out, wanted)
    assert torch.equal(multiply_add(*(t if t is None else t.detach() for t in inputs)), wanted)
    gradient = torch.randn(shape).to(dtype)
    there = [t for t in inputs if t is not None]
    found = torch.autograd.grad(out, there, gradient)
    for ours, theirs in zip(found, torch.autograd.grad(wanted, there, gradient), strict=True):
        assert ours.dtype == theirs.dtype
        assert torch.equal(ours, theirs)


def test_gradients_of_gradients_and_functional_transforms():
    z, scale, offset = (
        torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in ((2, 3, 4), (4,), (4,))
    )
    assert torch.autograd.gradcheck(multiply_add, (z, scale, offset))
    assert torch.autograd.gradgradcheck(multiply_add, (z, scale, offset))
    each = torch.func.vmap(torch.func.grad(lambda s, z: multiply_add(z, s, offset).pow(2).sum()), in_dims=(None, 0))
    wanted = [torch.autograd.grad(plain(row, scale, offset).pow(2).sum(), scale)[0] for row in z]
    torch.testing.assert_close(each(scale, z), torch.stack(wanted))


def test_a_gradient_flows_only_where_it_is_wanted():
    z, scale, offset = (torch.randn(3, requires_grad=needs) for needs in (False, True, False))
    multiply_add(z, scale, offset).sum().backward()
    assert torch.equal(scale.grad, z)
    assert (z.grad, offset.grad) == (None, None)


def write(edit):
    with torch.no_grad():
        edit.scale.add_(1.0)


def write_through_an_alias(edit):
    edit.scale.detach()[3, 0] += 1.0


def assign_data(edit):
    edit.scale.data = edit.scale.data + 1.0


def assign_data_twice(edit):
    edit.scale.data = edit.scale.data * 3.0
    edit.scale.data = edit.scale.data * 2.0  # perhaps at the first one's address


def replace(edit):
    edit.scale = nn.Parameter(edit.scale.detach() + 1.0)


def step(edit):
    for parameter in edit.parameters():
        parameter.grad = torch.ones_like(parameter)
    torch.optim.AdamW(edit.parameters(), lr=0.1, fused=True).step()


def load_state(edit):
    edit.load_state_dict({name: value + 1.0 for name, value in edit.state_dict().items()})


def in_inference_mode(edit):
    with torch.inference_mode():
        edit.offset.add_(1.0)


def write_unseen(edit):
    edit.scale.data.add_(1.0)
    edit.eval()


def change_gate(edit):
    with torch.no_grad():
        edit.scale_gate.neg_()


CHANGES = [
    write,
    write_through_an_alias,
    assign_data,
    assign_data_twice,
    replace,
    step,
    load_state,
    in_inference_mode,
    write_unseen,
    change_gate,
    lambda edit: edit.double(),
    lambda edit: edit.set_strength(0.5),
    lambda edit: edit.set_head(2, 0.0, None),
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_what_is_kept_is_never_stale(change, context):
    edit, z = site_edit(), torch.randn(2, 5, D)
    with context():
        before = edit(z)
        assert torch.equal(edit(z), before)
    change(edit)
    with context():
        found = edit(z)
    fresh = copy.deepcopy(edit)  # keeps nothing
    with torch.no_grad():
        wanted = fresh(z)
    assert torch.equal(found, wanted)
    assert change.__name__ == "<lambda>" or not torch.equal(found, before)
    if edit.strength is None:
        assert torch.equal(found, by_hand(edit, z)) or edit.scale.dtype == torch.float64


def test_it_is_computed_once_without_gradients_and_anew_with_them():
    edit, z = site_edit(), torch.randn(2, 5, D)
    with torch.no_grad():
        edit(z)
        kept = edit.kept.entry[1]
        edit(z)
        assert edit.kept.entry[1] is kept
    edit(z).sum().backward()
    assert edit.scale.grad is not None
    assert edit.kept.entry is None


def test_what_was_kept_in_inference_mode_serves_a_gradient_to_the_input():
    edit, z = site_edit().requires_grad_(False), torch.randn(2, 5, D, requires_grad=True)
    with torch.inference_mode():
        edit(z)
    (gradient,) = torch.autograd.grad(edit(z).sum(), z)
    assert torch.equal(gradient, edit.scale_and_offset()[0].expand_as(z))


def test_a_process_group_keeps_nothing(monkeypatch):
    edit, z = site_edit(), torch.randn(2, 5, D)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    with torch.no_grad():
        edit(z)
        edit.scale.data.add_(1.0)  # as FSDP does behind the version's back
        assert torch.equal(edit(z), by_hand(edit, z))


def test_other_parameters_for_one_call(llama, ids):
    edits = edited(llama)
    kept = logits(llama, ids)
    doubled = {f"headedit.default.{name}": 2 * p.detach() for name, p in edits.module.named_parameters()}
    with torch.no_grad():
        other = torch.func.functional_call(llama, doubled, kwargs={"input_ids": ids}).logits
    assert torch.equal(logits(llama, ids), kept)
    with torch.no_grad():
        for parameter in edits.module.parameters():
            parameter.mul_(2)
    assert torch.equal(logits(llama, ids), other)


def test_copies_and_pickles_keep_nothing(llama, ids):
    edited(llama)
    wanted = logits(llama, ids)
    for twin in (copy.deepcopy(llama), pickle.loads(pickle.dumps(llama.headedit["default"].sites[0]))):
        kept = [m.kept.entry for m in twin.modules() if hasattr(m, "kept")]
        assert kept
        assert set(kept) == {None}
    assert torch.equal(logits(copy.deepcopy(llama), ids), wanted)


def test_training_and_evaluating_in_turn_is_as_without_keeping(ids):
    def losses(forget):
        model = tiny_model("llama")
        edits = headedit.attach(model)
        randomise(edits)
        optimizer = torch.optim.AdamW(edits.module.parameters(), lr=0.05)
        torch.manual_seed(0)
        found = []
        for _ in range(4):
            model.train()
            model(input_ids=ids, labels=ids).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            model.eval()
            for _ in range(2):
                if forget:
                    for edit in edits.module:
                        edit.kept.drop()
                found.append(logits(model, ids))
        return found

    assert all(torch.equal(a, b) for a, b in zip(losses(False), losses(True), strict=True))
