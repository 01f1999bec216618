"""Gates by name, fixed gates, and hardened edits."""

import pytest
import torch
from tiny import logits, randomise, tiny_model

import headedit
from headedit import EditConfig
from headedit.edits.gate_set import GateIndex, all_gates, close, freeze_gates, heads_of, open_gates


def test_every_gate_has_one_index(llama):
    gates = all_gates(headedit.attach(llama).module)
    assert len(gates) == len(set(gates)) == 16
    assert gates[0] == GateIndex(0, "offset", 0)
    assert gates[-1] == GateIndex(1, "scale", 3)
    assert len(heads_of(gates)) == 8


@pytest.mark.parametrize(("gates", "count"), [("shared", 8), ("none", 0)])
def test_shared_gates_count_once_and_missing_ones_never(llama, gates, count):
    assert len(all_gates(headedit.attach(llama, config=EditConfig(gates=gates)).module)) == count


def test_fixed_gates_are_exactly_open_or_closed_in_training_too(llama, ids):
    edits = headedit.attach(llama)
    randomise(edits)
    chosen = [GateIndex(0, "offset", 2), GateIndex(1, "scale", 0)]
    freeze_gates(edits.module, chosen)
    assert open_gates(edits.module) == chosen
    vectors = [edits.module.site_edits[0].vectors["offset"], edits.module.site_edits[1].vectors["scale"]]
    assert [int((v.abs().sum(-1) > 0).sum()) for v in vectors] == [1, 1]
    assert edits.module.site_edits[0].vectors["scale"].abs().sum() == 0
    evaluated = logits(llama, ids)
    llama.train()
    assert torch.equal(logits(llama, ids), evaluated)


def test_closing_leaves_the_other_gates_as_they_are(llama):
    edits = headedit.attach(llama)
    randomise(edits)
    before = edits.module.site_edits[0].gates["offset_gate"].clone()
    close(edits.module, [GateIndex(0, "offset", 1)])
    after = edits.module.site_edits[0].gates["offset_gate"]
    assert torch.equal(after[[0, 2, 3]], before[[0, 2, 3]])
    assert edits.module.site_edits[0].distribution.clip(after)[1] == 0


@pytest.mark.parametrize("gates", ["separate", "shared"])
def test_hardening_changes_no_logit_and_no_sample_is_left(ids, gates):
    model = tiny_model("llama")
    edits = headedit.attach(model, config=EditConfig(gates=gates))
    randomise(edits)
    before, opened = logits(model, ids), open_gates(edits.module)
    values = edits.gates().offset
    assert ((values > 0) & (values < 1)).any()
    edits.harden()
    assert torch.equal(logits(model, ids), before)
    assert open_gates(edits.module) == opened
    assert set(edits.gates().offset.unique().tolist()) <= {0.0, 1.0}
    model.train()
    assert torch.equal(logits(model, ids), before)
    assert edits.gate_parameters() == []


def test_a_hardened_site_without_open_heads_is_passed_by_until_it_is_set_again(llama, ids):
    edits = headedit.attach(llama)
    randomise(edits)
    freeze_gates(edits.module, [GateIndex(1, "offset", 0)])
    edits.harden()
    first = edits.module.site_edits[0]
    assert (first.idle, edits.module.site_edits[1].idle) == (True, False)
    projection = edits.sites[0].module
    given, seen = [], []
    projection.register_forward_pre_hook(lambda m, a: given.append(a[0]), prepend=True)
    projection.register_forward_pre_hook(lambda m, a: seen.append(a[0]))
    before = logits(llama, ids)
    assert seen[0] is given[0]  # not even a copy
    edits.set_head(0, 1, scale=0.0)
    assert not torch.equal(logits(llama, ids), before)


def test_restoring_a_snapshot_brings_back_every_logit(llama, ids):
    edits = headedit.attach(llama)
    randomise(edits)
    before, kept = logits(llama, ids), edits.snapshot()
    freeze_gates(edits.module, [])
    edits.harden()
    assert not torch.equal(logits(llama, ids), before)
    edits.restore(kept)
    assert torch.equal(logits(llama, ids), before)
