"""What every recipe does with the values that steering wrote: it starts from them, or refuses by name."""

import pytest
import torch
from test_steer import planted_model, steer
from tiny import logits, randomise

import headedit
from headedit import EditConfig, HeadEditError
from headedit.edits.gate_set import SATURATED, open_gates, release_gates

ROWS = [{"input_ids": [3 + i, 4, 5, 6 + i], "labels": [-100, -100, 5, 6 + i]} for i in range(8)]
SHORT = {"epochs": 1, "progress": False}
STILL = 1e-9  # a learning rate at which nothing moves that can be seen
RATES = {
    "refit": {"scale_lr": STILL, "offset_lr": STILL, "min_steps": 1},
    "ungated": {"scale_lr": STILL, "offset_lr": STILL, "min_steps": 1},
    "ist": {"scale_lr": STILL, "offset_lr": STILL, "min_steps": 1},
    "rst": {"scale_lr": STILL, "offset_lr": STILL, "min_steps": 1},
    "jola": {"vector_lr": STILL, "gate_lr": STILL, "init_std": 0.0, "lambda_schedule": "constant"},
}


@pytest.fixture
def steered():
    """Edits with offsets on two heads, and the offsets by site."""
    edits = headedit.attach(planted_model()[0])
    steer(edits, heads=2, strength=2.0)
    return edits, [edit.vectors["offset"].clone() for edit in edits.module]


@pytest.mark.parametrize("recipe", RATES)
def test_a_recipe_trains_from_the_offsets_that_steering_wrote(steered, recipe, tmp_path):
    edits, offsets = steered
    headedit.fit(edits, ROWS, output_dir=tmp_path, recipe=recipe, **RATES[recipe], **SHORT)
    for edit, offset in zip(edits.module, offsets, strict=True):
        assert torch.allclose(edit.vectors["offset"], offset, atol=1e-4)
    opened = {"refit": (2, 8), "jola": (8, 8)}.get(recipe, (8, 8))
    assert edits.count_open()["offset"] == opened


def test_localise_searches_all_heads_and_refits_from_the_offsets_that_steering_wrote(steered, tmp_path):
    edits, offsets = steered
    rates = {"scale_lr": STILL, "offset_lr": STILL, "gate_lr": 0.05, "min_steps": 1, "search_epochs": 2, "searches": 1}
    run = headedit.fit(edits, ROWS, ROWS, output_dir=tmp_path, heads=2, **rates, **SHORT)
    assert run.path.levels[0].gates == 16  # closed ones are searched, too
    kept = 0
    for edit, offset in zip(edits.module, offsets, strict=True):
        opened = edit.is_open("offset")
        assert torch.allclose(edit.vectors["offset"][opened], offset[opened], atol=1e-4)
        kept += int(offset[opened].any(-1).sum())
    assert kept > 0


def test_jola_learns_the_gates_that_steering_fixed_and_the_heads_that_it_closed(steered, tmp_path):
    edits, _ = steered
    settings = {"vector_lr": 1e-2, "gate_lr": 1e-2, "warmup_epochs": 0.0, "lambda_schedule": "constant"}
    headedit.fit(edits, ROWS, output_dir=tmp_path, recipe="jola", epochs=3, progress=False, **settings)
    for edit in edits.module:
        for gate in edit.gates.values():
            assert gate.abs().max() < SATURATED / 10
            assert (gate != 0).all()
        assert edit.vectors["offset"].abs().amin(-1).gt(0).all()


def test_lofit_which_starts_from_nothing_refuses_a_start_and_takes_fresh_noise(steered, tmp_path):
    edits, offsets = steered
    with pytest.raises(HeadEditError, match=r"'lofit' trains vectors from nothing.*the offset of head \d in layer \d"):
        headedit.fit(edits, ROWS, output_dir=tmp_path / "a", recipe="lofit", **SHORT)
    assert all(torch.equal(edit.vectors["offset"], offset) for edit, offset in zip(edits.module, offsets, strict=True))
    fresh = headedit.attach(edits.detach(), config=EditConfig(init_std=1e-3))
    headedit.fit(fresh, ROWS, output_dir=tmp_path / "b", recipe="lofit", heads=1, **SHORT)


def slopes(edits):
    """The least gradient of the penalty among the gates of each site's vector."""
    found = torch.autograd.grad(edits.penalty(), edits.gate_parameters())
    return [gradient.abs().min().item() for gradient in found]


@pytest.mark.parametrize("gates", ["separate", "shared"])
def test_gates_that_are_released_can_be_learned_and_the_edits_act_as_before(ids, gates):
    edits = headedit.attach(planted_model()[0], config=EditConfig(gates=gates))
    randomise(edits)
    learned = edits.snapshot()
    release_gates(edits.module)
    assert all(map(torch.equal, learned, edits.snapshot()))  # none was fixed
    steer(edits, heads=3)
    before, opened = logits(edits.model, ids), open_gates(edits.module)
    assert slopes(edits) == [0.0] * len(edits.gate_parameters())
    release_gates(edits.module)
    assert torch.equal(logits(edits.model, ids), before)
    assert set(opened) <= set(open_gates(edits.module))
    assert min(slopes(edits)) > 0


def test_gates_that_hardening_froze_are_not_released(steered):
    edits, _ = steered
    edits.harden()
    before = edits.snapshot()
    release_gates(edits.module)
    assert all(map(torch.equal, before, edits.snapshot()))
