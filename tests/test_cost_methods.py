"""The methods that edits are compared with: they make the same edits, can be trained, and leave the model unchanged."""

import pytest
import torch
from tiny import tiny_model

import headedit
from headedit import EditConfig
from headedit.bench.cost import METHODS, Shape, measure_cost
from headedit.bench.cost.methods import Prepared, bare, edited, share
from headedit.bench.cost.peers import ATTACHED, INFERRED, TRAINED, load_lora, loop, lora, save_lora
from headedit.bench.cost.shapes import build, random_ids
from headedit.bench.cost.workloads import DECODED, decode, training_step

SMALL = Shape(layers=2, hidden=32, heads=2, kv_heads=1, batch=1, tokens=4)
IDS = random_ids(1000, 2, 6, "cpu")
LIBRARIES = {"lora": "peft", "ia3": "peft", "pyvene": "pyvene", "nnsight": "nnsight"}


def logits(prepared, ids=IDS):
    with torch.no_grad():
        return prepared.model.eval()(input_ids=ids).logits


def made(name, model):
    if name in LIBRARIES:
        pytest.importorskip(LIBRARIES[name])
    return METHODS[name](model)


def with_the_same_vectors(name, model):
    """A method, and edits without gates, with the same random vectors."""
    prepared, edits = made(name, model), headedit.attach(share(model), config=EditConfig(gates="none"))
    ours = [vector for site in edits.module for vector in (site.vectors["scale"], site.vectors["offset"])]
    with torch.no_grad():
        for vector, theirs in zip(ours, prepared.trained, strict=True):
            vector.normal_(0, 0.5)
            theirs.copy_(vector.flatten())
    return prepared, Prepared(edits.model, ours)


@pytest.fixture(scope="module")
def base():
    return build(SMALL)


@pytest.mark.parametrize("name", METHODS)
def test_methods_share_weights_and_leave_the_model_unchanged(base, name):
    before, state = logits(Prepared(base)), {n: p.data_ptr() for n, p in base.named_parameters()}
    prepared = made(name, base)
    pointers = {p.data_ptr() for p in prepared.model.parameters()}
    own = 2 if name == "merged" else 0  # the projections that the edits are merged into
    assert len(set(state.values()) - pointers) == own
    assert bool(prepared.trained) == (name in TRAINED)
    logits(prepared)
    assert {n: p.data_ptr() for n, p in base.named_parameters()} == state
    assert torch.equal(logits(Prepared(base)), before)
    assert not any(m._forward_pre_hooks for m in base.modules())


@pytest.mark.parametrize("name", TRAINED)
def test_a_step_changes_every_trained_parameter(base, name):
    prepared = made(name, base)
    step = training_step(prepared, IDS)
    before = [p.detach().clone() for p in prepared.trained]
    for _ in range(3):  # LoRA begins with one of its factors at zero
        step()
    assert prepared.model.training
    assert not any(torch.equal(p, old) for p, old in zip(prepared.trained, before, strict=True))


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "gpt_neox", "gemma2"])
@pytest.mark.parametrize("name", ["pyvene", "nnsight"])
def test_pyvene_and_nnsight_compute_the_same_edits_and_gradients(name, model_type):
    model = tiny_model(model_type).requires_grad_(False)
    ids = random_ids(model.config.vocab_size, 2, 6, "cpu")
    theirs, ours = with_the_same_vectors(name, model)
    torch.testing.assert_close(logits(theirs, ids), logits(ours, ids))
    assert not torch.allclose(logits(theirs, ids), logits(bare(model), ids), atol=1e-3)
    for prepared in (theirs, ours):
        prepared.model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    for vector, other in zip(ours.trained, theirs.trained, strict=True):
        assert vector.grad.abs().sum() > 0
        torch.testing.assert_close(other.grad, vector.grad.flatten())


@pytest.mark.parametrize("name", ["pyvene", "nnsight"])
def test_pyvene_and_nnsight_edit_every_token_that_they_decode(base, name):
    prepared, _ = with_the_same_vectors(name, base)
    whole = logits(prepared)
    with torch.no_grad():
        cache = prepared.model(input_ids=IDS[:, :4], use_cache=True).past_key_values
        for i in (4, 5):
            out = prepared.model(input_ids=IDS[:, i : i + 1], past_key_values=cache, use_cache=True)
            torch.testing.assert_close(out.logits[:, 0], whole[:, i])


def test_the_loop_computes_the_same_edits(base):
    ours, loops = edited(base), loop(base)
    with torch.no_grad():
        for site, other in zip(ours.model.headedit["default"], loops.model.loops, strict=True):
            for name, parameter in [*site.vectors.items(), *site.gates.items()]:
                parameter.copy_(torch.randn_like(parameter))
                getattr(other, name).copy_(parameter)
    torch.testing.assert_close(logits(ours), logits(loops))
    torch.testing.assert_close(ours.penalty(), loops.penalty())
    assert not torch.allclose(logits(loops), logits(bare(base)), atol=1e-3)


def test_a_saved_adapter_of_lora_is_loaded_with_its_weights(base, tmp_path):
    pytest.importorskip("peft")
    prepared = lora(base)
    with torch.no_grad():
        for parameter in prepared.trained:
            parameter.normal_()
    save_lora(prepared, tmp_path)
    assert torch.equal(logits(load_lora(share(base), tmp_path)), logits(prepared))


def test_decoding_continues_from_the_same_cache_in_each_run(base):
    lengths = []
    prepared = bare(base)
    ready = decode(prepared, IDS)
    prepared.model.register_forward_pre_hook(
        lambda module, args, given: lengths.append(given["past_key_values"].get_seq_length()), with_kwargs=True
    )
    for _ in range(2):
        ready()()
    assert lengths == 2 * list(range(6, 6 + DECODED))


def test_other_methods_are_measured_on_every_workload_of_edits():
    for package in set(LIBRARIES.values()):
        pytest.importorskip(package)
    cost = measure_cost(SMALL, repeats=1, progress=False)
    assert not cost.left_out
    for workload in ("step", "memory", "operators, train"):
        of = {row["method"] for row in cost.rows if row["workload"] == workload}
        assert of == set(TRAINED) - ({"upper bound"} if "operators" in workload else set())
    for workload in ("forward", "prefill", "decode", "operators, eval"):
        of = {row["method"] for row in cost.rows if row["workload"] == workload}
        assert of == set(INFERRED) - ({"bare"} if "operators" in workload else set())
    assert {row["method"] for row in cost.rows if row["workload"] == "attach"} == {"edited", *ATTACHED}
    assert {row["method"] for row in cost.rows if row["workload"] == "load"} == {"edited", "lora"}
