"""What may be done while edits are merged: it is right, or refused by name."""

import copy
import pickle

import pytest
import torch
from tiny import logits, randomise, tiny_model
from transformers import TrainingArguments

import headedit
from headedit import HeadEditError

ROWS = [{"input_ids": [i, i + 1, 9], "labels": [-100, i + 1, 9]} for i in range(3, 11)]


@pytest.fixture
def edits(llama):
    found = headedit.attach(llama)
    randomise(found)
    found.add_adapter("other")
    return found


def fit(edits, folder):
    headedit.fit(edits, ROWS, output_dir=folder, recipe="ungated", epochs=1, batch_size=4, progress=False)


MEANWHILE = {
    "set_head": (lambda edits, folder: edits.set_head(0, 1, scale=0.0), "no head can be set"),
    "strength": (lambda edits, folder: setattr(edits, "strength", 0.5), "the strength cannot be changed"),
    "harden": (lambda edits, folder: edits.harden(), "they cannot be hardened"),
    "restore": (lambda edits, folder: edits.restore(edits.snapshot()), "their values cannot be restored"),
    "set_adapter": (lambda edits, folder: edits.set_adapter("other"), "'other' cannot be set"),
    "delete_adapter": (lambda edits, folder: edits.delete_adapter("other"), "'other' cannot be deleted"),
    "fit": (fit, "they cannot be trained"),
    "route": (lambda edits, folder: edits.route([None]).__enter__(), "rows cannot be routed"),
    "at_strength": (lambda edits, folder: edits.at_strength(0.5).__enter__(), "the strength cannot be changed"),
    "disable_adapter_layers": (
        lambda edits, folder: edits.disable_adapter_layers(),
        "they cannot be switched off in place",
    ),
}


@pytest.mark.parametrize(("act", "what"), MEANWHILE.values(), ids=MEANWHILE)
def test_what_would_change_nothing_while_merged_is_refused_and_changes_nothing(act, what, edits, ids, tmp_path):
    edited = logits(edits.model, ids)
    edits.merge_adapter()
    merged = logits(edits.model, ids)
    with pytest.raises(HeadEditError, match=f"While the edits are merged, {what}.*unmerge_adapter"):
        act(edits, tmp_path)
    assert torch.equal(logits(edits.model, ids), merged)
    edits.unmerge_adapter()
    assert torch.equal(logits(edits.model, ids), edited)


@pytest.mark.parametrize("context", ["disable_adapter", "route", "at_strength"])
def test_fit_and_merge_inside_a_context_are_refused(context, edits, ids, tmp_path):
    arguments = {"disable_adapter": (), "route": (["other", None],), "at_strength": (0.5,)}[context]
    edited = logits(edits.model, ids)
    for act, what in ((lambda: fit(edits, tmp_path), "trained"), (edits.merge_adapter, "merg")):
        with getattr(edits, context)(*arguments), pytest.raises(HeadEditError, match=what):
            act()
    assert torch.equal(logits(edits.model, ids), edited)
    assert list(tmp_path.iterdir()) == []


def test_fit_of_disabled_layers_is_refused(edits, tmp_path):
    edits.disable_adapter_layers()
    with pytest.raises(HeadEditError, match="disabled, so nothing would be learnt: call enable_adapter_layers"):
        fit(edits, tmp_path)


def test_a_trainer_of_ours_refuses_what_fit_refuses(edits, tmp_path):
    arguments = TrainingArguments(output_dir=str(tmp_path), report_to=[], use_cpu=True)
    trainer = headedit.HeadEditTrainer(edits, args=arguments, train_dataset=ROWS)
    with edits.disable_adapter(), pytest.raises(HeadEditError, match=r"Inside disable_adapter\(\), nothing can be"):
        trainer.train()


@pytest.mark.parametrize("twin", [False, True])
def test_a_model_that_is_moved_while_merged_is_the_moved_base_model_after_unmerging(twin, edits, ids):
    model = edits.model
    edits.merge_adapter()
    if twin:
        edits = pickle.loads(pickle.dumps(edits))
        model = edits.model
    model.to(torch.bfloat16)
    with edits.disable_adapter():
        base = logits(model, ids)
    edits.unmerge_adapter()
    fresh = tiny_model("llama").to(torch.bfloat16)
    assert torch.equal(base, logits(fresh, ids))
    plain = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith("headedit")}
    for name, tensor in fresh.state_dict().items():
        assert torch.equal(plain[name], tensor)
    assert {p.dtype for name, p in model.named_parameters() if not name.startswith("headedit")} == {torch.bfloat16}
    edits.detach()
    assert torch.equal(logits(model, ids), base)


def test_a_model_that_is_moved_inside_a_context_while_merged_gets_its_merged_weights_back(edits, ids):
    edits.merge_adapter()
    merged = logits(edits.model, ids)
    with edits.disable_adapter():
        edits.model.to(torch.bfloat16)
    assert {p.dtype for p in edits.model.model.parameters()} == {torch.bfloat16}
    torch.testing.assert_close(logits(edits.model, ids).float(), merged, atol=0.05, rtol=0.05)
    edits.unmerge_adapter()


@pytest.mark.parametrize("copied", [False, True])
def test_weights_that_were_written_while_merged_are_not_thrown_away(copied, edits, ids):
    edits.merge_adapter()
    with torch.no_grad():
        edits.model.model.layers[1].self_attn.o_proj.weight.mul_(2.0)
    written = logits(edits.model, ids)
    if copied:
        edits = copy.deepcopy(edits)
    with pytest.raises(HeadEditError, match="was written to while the edits were merged"):
        edits.unmerge_adapter()
    assert torch.equal(logits(edits.model, ids), written)
    assert torch.equal(logits(edits.merge_and_unload(), ids), written)


def test_unmerging_inside_disable_adapter_leaves_the_base_model_and_then_the_edits(edits, ids):
    edited = logits(edits.model, ids)
    with edits.disable_adapter():
        base = logits(edits.model, ids)
    edits.merge_adapter()
    with edits.disable_adapter():
        edits.unmerge_adapter()
        assert torch.equal(logits(edits.model, ids), base)
    assert torch.equal(logits(edits.model, ids), edited)
    assert edits.merged is None
