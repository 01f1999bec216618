"""The affine map of an edit: bits and gradients of the plain formula, and other parameters for one call."""

import pytest
import torch
from test_site_edit import HEADS, WIDTH
from third_party import edited
from tiny import logits

from headedit.edits.affine import apply_affine

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
def test_an_edit_has_the_bits_and_gradients_of_the_plain_formula(which, dtype, shape, broadcast):
    inputs = tensors(shape, dtype, which, broadcast)
    out, wanted = apply_affine(*inputs), plain(*inputs)
    assert out.dtype == dtype
    assert torch.equal(out, wanted)
    assert torch.equal(apply_affine(*(t if t is None else t.detach() for t in inputs)), wanted)
    gradient = torch.randn(shape).to(dtype)
    there = [t for t in inputs if t is not None]
    found = torch.autograd.grad(out, there, gradient)
    for ours, theirs in zip(found, torch.autograd.grad(wanted, there, gradient), strict=True):
        assert ours.dtype == theirs.dtype
        assert torch.equal(ours, theirs)


def test_an_edit_has_gradients_of_gradients_and_works_under_functional_transforms():
    z, scale, offset = (
        torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in ((2, 3, 4), (4,), (4,))
    )
    assert torch.autograd.gradcheck(apply_affine, (z, scale, offset))
    assert torch.autograd.gradgradcheck(apply_affine, (z, scale, offset))
    each = torch.func.vmap(torch.func.grad(lambda s, z: apply_affine(z, s, offset).pow(2).sum()), in_dims=(None, 0))
    wanted = [torch.autograd.grad(plain(row, scale, offset).pow(2).sum(), scale)[0] for row in z]
    torch.testing.assert_close(each(scale, z), torch.stack(wanted))


def test_a_gradient_flows_only_to_the_tensors_that_require_one():
    z, scale, offset = (torch.randn(3, requires_grad=needs) for needs in (False, True, False))
    apply_affine(z, scale, offset).sum().backward()
    assert torch.equal(scale.grad, z)
    assert (z.grad, offset.grad) == (None, None)


def test_functional_call_takes_other_parameters_for_one_call(llama, ids):
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
