"""The edits of all sites of a pass, computed together: the same bits as one by one, and only where that holds."""

import copy
import gc
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
import torch
from tiny import randomise, tiny_model
from torch.utils.checkpoint import checkpoint

import headedit
from headedit import EditConfig
from headedit.edits import site_edit
from headedit.edits.passes import Passes

CONFIGS = {
    "default": {},
    "shared gates": {"gates": "shared"},
    "no gates": {"gates": "none"},
    "offset": {"vectors": "offset"},
    "scale": {"vectors": "scale"},
    "two kinds of site": {"sites": ["attention", "mlp"]},
}


def attached(config=None, **changes):
    edits = headedit.attach(tiny_model("llama", num_hidden_layers=3, **changes), config=EditConfig(**(config or {})))
    randomise(edits)
    for gate in edits.gate_parameters():
        gate.data.mul_(0.1)  # so that they are drawn anywhere between closed and open
    edits.model.train()
    return edits


def gradients(edits, ids, seed=0):
    torch.manual_seed(seed)
    loss = edits.model(input_ids=ids, labels=ids).loss
    return loss.detach(), torch.autograd.grad(loss, list(edits.module.parameters()))


def one_by_one(monkeypatch):
    monkeypatch.setattr(Passes, "affine", lambda self, running, edit: None)


def calls(monkeypatch):
    """How many sites each computation takes, in the order they come."""
    taken, before = [], site_edit._affine

    def counted(edits, *args, **kwargs):
        taken.append(len(edits))
        return before(edits, *args, **kwargs)

    monkeypatch.setattr(site_edit, "_affine", counted)
    return taken


@pytest.mark.parametrize("strength", [1.0, 0.5])
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_sites_computed_together_have_the_bits_of_sites_computed_one_by_one(config, strength, ids, monkeypatch):
    edits = attached(config)
    edits.strength = strength
    loss, found = gradients(edits, ids)
    taken = calls(monkeypatch)
    gradients(edits, ids)
    assert taken == ([3, 3] if "sites" in config else [3])
    one_by_one(monkeypatch)
    taken.clear()
    loss_alone, alone = gradients(edits, ids)
    assert taken == [1] * len(edits.sites)
    assert torch.equal(loss, loss_alone)
    assert sum(bool((gradient != 0).any()) for gradient in found) > len(found) / 2
    for a, b in zip(found, alone, strict=True):
        assert torch.equal(a, b)


def test_every_pass_draws_its_own_gates(ids):
    edits = attached()
    torch.manual_seed(0)
    one, other = (edits.model(input_ids=ids).logits for _ in range(2))
    assert not torch.equal(one, other)
    torch.autograd.grad(one.sum() + other.sum(), list(edits.module.parameters()))  # each has a graph of its own


def test_a_frozen_site_stays_out_of_the_graph(ids, monkeypatch):
    edits = attached()
    first, *_ = edits.module
    first.requires_grad_(False)
    seen = []
    for layer in edits.model.model.layers:
        layer.register_forward_hook(lambda module, args, out: seen.append(out.requires_grad))
    taken = calls(monkeypatch)
    edits.model(input_ids=ids)
    assert seen == [False, True, True]
    assert sorted(taken) == [1, 2]


def test_sites_of_different_shapes_are_computed_in_groups(ids, monkeypatch):
    taken = calls(monkeypatch)
    attached({"sites": ["attention", "mlp"]}).model(input_ids=ids)
    assert taken == [3, 3]


def with_a_graph() -> list[torch.Tensor]:
    gc.collect()
    return [o for o in gc.get_objects() if issubclass(type(o), torch.Tensor) and o.grad_fn is not None]


def test_nothing_of_a_pass_outlives_it(ids):
    before = with_a_graph()  # of other tests
    edits = attached()
    loss = edits.model(input_ids=ids, labels=ids).loss
    loss.backward()
    del loss
    edits.module.zero_grad()
    assert {id(o) for o in with_a_graph()} == {id(o) for o in before}
    edits.model.model.layers[1].mlp.register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        edits.model(input_ids=ids)
    copy.deepcopy(edits.model)  # a tensor with a graph cannot be copied


def test_a_layer_that_is_called_alone_draws_its_own_gates(ids, monkeypatch):
    edits = attached()
    edits.model(input_ids=ids)
    taken = calls(monkeypatch)
    hidden, rotary = torch.randn(1, 5, 32), edits.model.model.rotary_emb
    positions = torch.arange(5)[None]
    layer = edits.model.model.layers[1]
    one, other = (layer(hidden, position_embeddings=rotary(hidden, positions)) for _ in range(2))
    assert taken == [1, 1]
    assert not torch.equal(one, other)


def in_segments(model, segment):
    """Has all layers but the first run as segments of their own."""
    for layer in model.model.layers[1:]:
        inner = layer.forward

        def forward(hidden, inner=inner, **kwargs):
            return segment(lambda x: inner(x, **kwargs), hidden)

        layer.forward = forward


def with_hooks(run, hidden):
    """Draws as a checkpointed segment does, and is not recomputed."""
    with torch.autograd.graph.saved_tensors_hooks(lambda x: x, lambda x: x):
        return run(hidden)


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_checkpointed_segment_draws_the_same_gates_again(reentrant, ids, monkeypatch):
    wanted = attached()
    in_segments(wanted.model, with_hooks)
    edits = attached()
    in_segments(edits.model, partial(checkpoint, use_reentrant=reentrant))
    taken = calls(monkeypatch)
    for handle in (wanted, edits):
        torch.manual_seed(0)
        taken.clear()
        handle.model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    assert taken == [3, 1, 1, 1, 1]  # the first asks for all, the others may not use that, and are run again
    for ours, theirs in zip(edits.module.parameters(), wanted.module.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)


def test_two_passes_can_come_before_one_backward_pass(ids):
    """As preference losses have it: the second pass must not take the first one's graph away."""
    edits = attached()
    edits.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    torch.manual_seed(0)
    losses = [edits.model(input_ids=rows, labels=rows).loss for rows in (ids, ids.flip(0))]
    (losses[0] - losses[1]).backward()
    found = [p.grad.clone() for p in edits.module.parameters()]
    edits.model.gradient_checkpointing_disable()
    torch.manual_seed(0)
    losses = [edits.model(input_ids=rows, labels=rows).loss for rows in (ids, ids.flip(0))]
    wanted = torch.autograd.grad(losses[0] - losses[1], list(edits.module.parameters()))
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-7)


def test_every_pass_in_eval_mode_computes_all_sites_together(ids, monkeypatch):
    edits = attached()
    edits.model.eval()
    taken = calls(monkeypatch)
    with torch.no_grad():
        one, other = (edits.model(input_ids=ids).logits for _ in range(2))
    assert taken == [3, 3]
    assert torch.equal(one, other)
    with torch.no_grad(), monkeypatch.context() as patch:
        patch.setattr(Passes, "affine", lambda self, running, edit: None)
        alone = edits.model(input_ids=ids).logits
    assert taken == [3, 3, 1, 1, 1]
    assert torch.equal(alone, one)


def test_a_checkpointed_segment_in_eval_mode_is_recomputed_to_the_same_bits(ids):
    edits, wanted = attached(), attached()
    in_segments(edits.model.eval(), partial(checkpoint, use_reentrant=False))
    for handle in (edits, wanted):
        handle.model.eval()
        handle.model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    for ours, theirs in zip(edits.module.parameters(), wanted.module.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)


@pytest.mark.parametrize("training", [False, True])
def test_hooks_on_a_site_edit_are_called(training, ids):
    edits = attached()
    edits.model.train(training)
    list(edits.module)[1].register_forward_hook(lambda module, args, out: args[0])  # as if it were not there

    def logits():
        torch.manual_seed(0)
        with torch.no_grad():
            return edits.model(input_ids=ids).logits

    found = logits()
    with torch.no_grad():
        for parameter in (list(edits.module)[1].vectors["offset"], list(edits.module)[1].vectors["scale"]):
            parameter.zero_()
    assert torch.equal(found, logits())


def test_sites_that_were_disabled_act_again(ids):
    edits = attached()
    edits.model.eval()

    def logits():
        with torch.no_grad():
            return edits.model(input_ids=ids).logits

    edited = logits()
    with edits.disable_adapter():
        bare = logits()
    assert torch.equal(logits(), edited)
    edits.add_adapter("other")
    edits.set_adapter("other")
    assert torch.equal(logits(), bare)
    edits.set_adapter("default")
    assert torch.equal(logits(), edited)
    list(edits.module)[1].train()
    assert not torch.equal(logits(), edited)  # one site draws its gates, the others do not
    edits.model.eval()
    assert torch.equal(logits(), edited)


def test_gradients_that_are_switched_on_within_a_pass_reach_the_edits(ids):
    edits = attached()
    edits.model.eval()
    layer = edits.model.model.layers[2]
    layer.register_forward_pre_hook(lambda *_: torch.set_grad_enabled(True) and None)
    with torch.no_grad():
        out = edits.model(input_ids=ids).logits
    assert out.requires_grad
    *_, last = edits.module
    (gradient,) = torch.autograd.grad(out.square().sum(), [last.vectors["offset"]])
    assert (gradient != 0).any()


def test_threads_that_infer_at_once_do_not_disturb_each_other(ids):
    edits = attached()
    edits.model.eval()
    batches = [ids, ids.flip(0), ids[:1], ids.flip(1)]

    def infer(batch):
        with torch.no_grad():
            return [edits.model(input_ids=batch).logits for _ in range(100)]

    wanted = [infer(batch)[0] for batch in batches]
    with ThreadPoolExecutor(len(batches)) as pool:
        found = list(pool.map(infer, batches))
    assert [len(logits) for logits in found] == [100] * 4
    for logits, right in zip(found, wanted, strict=True):
        assert all(torch.equal(one, right) for one in logits)
