"""A write to the edits acts in the next pass, however it is made: nothing is remembered from one pass to the next."""

import copy
import itertools
import pickle

import pytest
import torch
from tiny import logits, randomise, tiny_model
from torch import nn
from torch.nn.utils import parametrize
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import headedit


def attached():
    edits = headedit.attach(tiny_model("llama", num_hidden_layers=3))
    randomise(edits)
    edits.model.eval()
    return edits


def right(edits, ids):
    """The logits of a model that never had other values than these."""
    fresh = headedit.attach(tiny_model("llama", num_hidden_layers=3))
    for ours, theirs in zip(fresh.module.parameters(), edits.module.parameters(), strict=True):
        ours.data = theirs.detach().clone()
    fresh.strength = edits.strength
    return logits(fresh.model, ids)


def with_gradients(edits):
    for parameter in edits.module.parameters():
        parameter.grad = torch.ones_like(parameter)
    return list(edits.module.parameters())


def a_write_in_place(edits):
    with torch.no_grad():
        edits.module.site_edits[2].vectors["scale"].add_(1.0)


def a_write_to_a_gate(edits):
    with torch.no_grad():
        edits.module.site_edits[0].gates["offset_gate"].neg_()


def a_write_to_a_detached_alias(edits):
    edits.module.site_edits[0].vectors["scale"].detach()[:, 0] += 1.0


def a_write_through_data(edits):
    edits.module.site_edits[1].vectors["scale"].data.add_(1.0)


def an_assignment_to_data(edits):
    vector = edits.module.site_edits[1].vectors["offset"]
    vector.data = vector.data * 3.0
    vector.data = vector.data * 2.0  # perhaps at the address of the first


def an_exchanged_parameter(edits):
    vectors = edits.module.site_edits[0].vectors
    vectors["scale"] = nn.Parameter(vectors["scale"].detach() + 1.0)


def a_write_in_inference_mode(edits):
    with torch.inference_mode():
        edits.module.site_edits[0].vectors["offset"].add_(1.0)


def a_step_of_a_fused_optimiser(edits):
    torch.optim.AdamW(with_gradients(edits), lr=0.1, fused=True).step()


def a_step_of_a_fused_optimiser_without_momentum(edits):
    torch.optim.SGD(with_gradients(edits), lr=0.1, fused=True).step()


def a_step_of_a_foreach_optimiser(edits):
    torch.optim.AdamW(with_gradients(edits), lr=0.1, foreach=True).step()


def a_step_of_a_plain_optimiser(edits):
    torch.optim.AdamW(with_gradients(edits), lr=0.1, foreach=False).step()


def a_moving_average_copied_back(edits):
    average = AveragedModel(edits.module, multi_avg_fn=get_ema_multi_avg_fn(0.5))
    average.update_parameters(edits.module)
    with torch.no_grad():
        for parameter in average.module.parameters():
            parameter.mul_(1.5)
    for parameter, mean in zip(edits.module.parameters(), average.module.parameters(), strict=True):
        parameter.data.copy_(mean)


def a_loaded_state_dict(edits):
    edits.module.load_state_dict({name: value + 1.0 for name, value in edits.module.state_dict().items()})


def a_loaded_state_dict_that_is_assigned(edits):
    state = {name: value + 1.0 for name, value in edits.module.state_dict().items()}
    edits.module.load_state_dict(state, assign=True)


def a_numpy_alias(edits):
    edits.module.site_edits[2].vectors["offset"].detach().numpy()[:] += 1.0


def a_dlpack_alias(edits):
    torch.from_dlpack(edits.module.site_edits[2].vectors["offset"].detach()).add_(1.0)


def another_dtype(edits):
    with torch.no_grad():
        edits.module.site_edits[0].vectors["scale"].add_(1e-9 + 1.0)
    edits.module.double()


def a_dial(edits):
    edits.strength = 0.5


def a_head_set_by_hand(edits):
    edits.set_head(1, 2, scale=0.0)


WRITES = [
    a_write_in_place,
    a_write_to_a_gate,
    a_write_to_a_detached_alias,
    a_write_through_data,
    an_assignment_to_data,
    an_exchanged_parameter,
    a_write_in_inference_mode,
    a_step_of_a_fused_optimiser,
    a_step_of_a_fused_optimiser_without_momentum,
    a_step_of_a_foreach_optimiser,
    a_step_of_a_plain_optimiser,
    a_moving_average_copied_back,
    a_loaded_state_dict,
    a_loaded_state_dict_that_is_assigned,
    a_numpy_alias,
    a_dlpack_alias,
    another_dtype,
    a_dial,
    a_head_set_by_hand,
]


@pytest.mark.parametrize("write", WRITES, ids=lambda write: write.__name__)
@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_a_write_acts_in_the_next_pass(write, context, ids):
    edits = attached()
    with context():
        before = [edits.model(input_ids=ids).logits for _ in range(2)]
    assert torch.equal(*before)
    write(edits)
    with context():
        after = edits.model(input_ids=ids).logits
    assert torch.equal(after, right(edits, ids))
    assert not torch.equal(after, before[0])


def test_a_write_to_the_original_of_a_parametrized_vector_acts_in_the_next_pass(ids):
    class Double(nn.Module):
        def forward(self, value):
            return 2 * value

    edits = attached()
    edit = edits.module.site_edits[1]
    for owner, name in ((edit.vectors, "offset"), (edit.gates, "offset_gate")):
        parametrize.register_parametrization(owner, name, Double())
    before = logits(edits.model, ids)
    with torch.no_grad():
        edit.vectors.parametrizations.offset.original.add_(1.0)
        edit.gates.parametrizations.offset_gate.original.sub_(0.5)
    plain = attached()
    with torch.no_grad():
        plain.module.site_edits[1].vectors["offset"].add_(1.0).mul_(2)
        plain.module.site_edits[1].gates["offset_gate"].sub_(0.5).mul_(2)
    after = logits(edits.model, ids)
    assert torch.equal(after, logits(plain.model, ids))
    assert not torch.equal(after, before)


def add_one(tensor):
    tensor.add_(1.0)


def test_a_write_by_another_process_to_shared_memory_acts_in_the_next_pass(ids):
    edits = attached()
    edits.module.share_memory()
    before = logits(edits.model, ids)
    process = torch.multiprocessing.get_context("spawn").Process(
        target=add_one, args=(edits.module.site_edits[1].vectors["offset"].detach(),)
    )
    process.start()
    process.join()
    assert process.exitcode == 0
    after = logits(edits.model, ids)
    assert torch.equal(after, right(edits, ids))
    assert not torch.equal(after, before)


@pytest.mark.usefixtures("fresh_compiler")
def test_steps_through_a_compiled_model_act_in_the_model_and_writes_act_in_the_compiled_one(ids):
    edits = attached()
    compiled = torch.compile(edits.model, backend="aot_eager")
    optimiser = torch.optim.AdamW(edits.module.parameters(), lr=0.05, fused=True)
    before = logits(edits.model, ids)
    for _ in range(2):
        compiled(input_ids=ids, labels=ids).loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        after = logits(edits.model, ids)
        assert torch.equal(after, right(edits, ids))
        assert not torch.equal(after, before)
    torch.testing.assert_close(logits(compiled, ids), after)
    edits.module.site_edits[1].vectors["scale"].data.add_(1.0)
    torch.testing.assert_close(logits(compiled, ids), right(edits, ids))
    assert not torch.allclose(logits(compiled, ids), after, atol=1e-3)


def test_forward_mode_differentiation_goes_through_the_edits(ids):
    edits = attached()
    edits.model.set_attn_implementation("eager")  # torch has no forward mode for the CPU's fused attention
    parameters = dict(edits.module.named_parameters())
    names = [f"headedit.default.{name}" for name in parameters]
    directions = tuple(torch.randn_like(value) for value in parameters.values())

    def model_logits(*values):
        values = dict(zip(names, values, strict=True))
        return torch.func.functional_call(edits.model, values, kwargs={"input_ids": ids}).logits

    for _ in range(2):
        values = tuple(parameter.detach() for parameter in parameters.values())
        out, tangent = torch.func.jvp(model_logits, values, directions)
        wanted = edits.model(input_ids=ids).logits
        assert torch.equal(out, wanted)
        cotangent = torch.randn_like(out)
        gradients = torch.autograd.grad((wanted * cotangent).sum(), list(parameters.values()))
        backward = sum((g * d).sum() for g, d in zip(gradients, directions, strict=True))
        torch.testing.assert_close((tangent * cotangent).sum(), backward, rtol=1e-3, atol=1e-3)
        a_write_in_place(edits)


def test_training_and_evaluating_in_turn_is_as_evaluating_a_fresh_model(ids):
    edits = attached()
    optimiser = torch.optim.AdamW(edits.module.parameters(), lr=0.05)
    seen = [logits(edits.model, ids)]
    for _ in range(3):
        edits.model.train()
        edits.model(input_ids=ids, labels=ids).loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        edits.model.eval()
        for _ in range(2):
            assert torch.equal(logits(edits.model, ids), right(edits, ids))
        seen.append(logits(edits.model, ids))
    assert all(not torch.equal(a, b) for a, b in itertools.pairwise(seen))


def test_frozen_edits_pass_a_gradient_to_the_input():
    edit = attached().module.site_edits[0].requires_grad_(False)
    z = torch.randn(2, 5, 64, requires_grad=True)
    with torch.inference_mode():
        edit(z)
    (gradient,) = torch.autograd.grad(edit(z).sum(), z)
    assert torch.equal(gradient, edit.scale_and_offset()[0].expand_as(z))


@pytest.mark.parametrize("twin_of", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_has_the_same_edits_and_its_own_values(twin_of, ids):
    edits = attached()
    wanted = logits(edits.model, ids)
    twin = twin_of(edits.model)
    assert torch.equal(logits(twin, ids), wanted)
    handle = headedit.handle(twin)
    assert handle is not edits
    assert handle.model is twin
    a_write_in_place(handle)
    assert torch.equal(logits(twin, ids), right(handle, ids))
    assert torch.equal(logits(edits.model, ids), wanted)


def test_a_state_dict_loaded_into_hardened_edits_opens_their_sites_again(ids):
    edits = attached()
    wanted, state = logits(edits.model, ids), copy.deepcopy(edits.model.state_dict())
    with torch.no_grad():
        for gate in edits.module.site_edits[0].gates.values():
            gate.fill_(-9.0)
    edits.harden()
    assert edits.module.site_edits[0].idle
    assert not torch.equal(logits(edits.model, ids), wanted)
    edits.model.load_state_dict(state)
    assert torch.equal(logits(edits.model, ids), wanted)
