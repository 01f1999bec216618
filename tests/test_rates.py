"""Default learning rates and effort: how long a step and a run are, and what a run that learns nothing says."""

import math

import pytest
import torch
from tiny import logits, tiny_model

import headedit
from headedit import Run
from headedit.data.batches import PadRight
from headedit.data.losses import example_losses
from headedit.edits.gate_set import all_gates, close, freeze_gates
from headedit.training.recipes import make_recipe
from headedit.training.recipes.effort import planned_text
from headedit.training.recipes.rates import LARGEST, count_values, default_rate, with_rates

ROWS = [{"input_ids": [3, 4 + i % 5, 5 + i % 7, 9], "labels": [-100, -100, 5 + i % 7, 9]} for i in range(24)]


@pytest.fixture
def edits():
    return headedit.attach(tiny_model("llama", head_dim=64, num_hidden_layers=4))


def test_a_step_is_as_long_however_many_values_it_moves():
    lengths = [default_rate(values) * math.sqrt(values) for values in (100, 1_024, 34_560, 264_192)]
    assert lengths == pytest.approx([lengths[0]] * 4)
    assert default_rate(34_560) == pytest.approx(0.0269, abs=1e-4)  # that of every head of SmolLM2-135M
    assert default_rate(1) == LARGEST


def test_only_values_whose_gates_are_not_closed_count(edits):
    gates = all_gates(edits.module)
    assert count_values(edits) == len(gates) * 64 == sum(v.numel() for v in edits.vector_parameters())
    close(edits.module, gates[:10])
    assert count_values(edits) == (len(gates) - 10) * 64
    freeze_gates(edits.module, gates[:3])
    assert count_values(edits) == 3 * 64
    shared = headedit.attach(tiny_model("llama"), config=headedit.EditConfig(gates="shared"))
    assert count_values(shared) == sum(v.numel() for v in shared.vector_parameters())
    none = headedit.attach(tiny_model("llama"), config=headedit.EditConfig(gates="none"))
    assert count_values(none) == sum(v.numel() for v in none.vector_parameters())


@pytest.mark.parametrize(("given", "found"), [({}, None), ({"offset_lr": 0.2}, 0.2)])
def test_rates_that_are_given_are_those_of_the_run(given, found, edits):
    stage = with_rates(make_recipe("ungated", given).vector_stage(), edits)
    usual = default_rate(count_values(edits))
    assert (stage.offset_lr, stage.scale_lr) == (found or usual, usual / 2)


def test_an_ist_step_moves_a_quarter_of_the_layers_twice_as_far(edits, tmp_path):
    run = headedit.fit(edits, ROWS, output_dir=tmp_path, recipe="rst", epochs=1, progress=False)
    every = headedit.attach(tiny_model("llama", head_dim=64, num_hidden_layers=4))
    other = headedit.fit(every, ROWS, output_dir=tmp_path / "all", recipe="ungated", epochs=1, progress=False)
    first, second = (next(row for row in r.history.rows if "learning_rate" in row) for r in (run, other))
    assert first["learning_rate"] == pytest.approx(2 * second["learning_rate"])


def test_the_rate_of_a_search_falls_while_gates_are_closed_and_that_of_the_refit_is_higher(tmp_path):
    """Levels that are measured at rates that rise again are not compared by their gates."""
    run = headedit.fit(
        headedit.attach(tiny_model("llama")), ROWS, output_dir=tmp_path, heads=1, min_steps=20, progress=False
    )
    rates = {
        stage: [
            row["learning_rate"] for row in run.history.rows if row.get("stage") == stage and "learning_rate" in row
        ]
        for stage in ("search 1", "refit")
    }
    after = rates["search 1"][rates["search 1"].index(max(rates["search 1"])) :]
    assert len(after) >= 10
    assert after == sorted(after, reverse=True)
    assert max(rates["refit"]) > 1.5 * max(rates["search 1"])


@pytest.mark.parametrize("effort", ["fast", "normal", "thorough"])
def test_a_run_takes_the_steps_that_its_plan_says(effort, tmp_path):
    lengths = {"min_steps": 0, "search_epochs": 2, "epochs": 1, "checks": False, "searches": 1}
    recipe = make_recipe("localise", {"effort": effort, **lengths})
    plan = recipe.plan(len(ROWS), validated=False)
    edits = headedit.attach(tiny_model("llama"))
    run = headedit.fit(edits, ROWS, output_dir=tmp_path, effort=effort, progress=False, **lengths)
    assert sum(stage.steps for stage in plan) == run.record["steps"]
    assert len(plan) == (6 if effort == "thorough" else 2)  # four folds, all examples, refit


def test_the_plan_of_a_run_counts_its_passes_over_the_examples():
    plan = make_recipe("localise", {}).plan(200, validated=False)
    assert planned_text(plan) == "search 300 steps, refit 300 steps: 24 passes over the examples"
    thorough = make_recipe("localise", {"effort": "thorough"}).plan(200, validated=True)
    assert planned_text(thorough) == "2 × search 500 steps, refit 500 steps: 60 passes over the examples"


def conflicting(model):
    """Training examples that contradict the model, and held-out ones that are its own predictions."""
    ids = torch.randint(3, 128, (24, 12), generator=torch.Generator().manual_seed(0))
    answers = logits(model, ids).argmax(-1)
    wrong = [{"input_ids": r, "labels": [-100] * 6 + [7] * 6} for r in ids.tolist()]
    right = [
        {"input_ids": r, "labels": [-100] * 6 + a[5:11]} for r, a in zip(ids.tolist(), answers.tolist(), strict=True)
    ]
    return wrong, right


@pytest.mark.parametrize("recipe", ["localise", "ist", "ungated"])
def test_edits_that_are_worse_than_the_base_on_held_out_examples_are_taken_out(recipe, tmp_path, caplog):
    model = tiny_model("llama")
    ids = torch.tensor([[3, 4, 5, 6]])
    before = logits(model, ids)
    wrong, right = conflicting(model)
    base = example_losses(model, right, PadRight(0), 32).mean().item()
    edits = headedit.attach(model)
    run = headedit.fit(edits, wrong, right, recipe=recipe, output_dir=tmp_path, epochs=20, progress=False)
    assert torch.equal(logits(model, ids), before)
    assert edits.count_open()["any"][0] == 0
    assert "worse than the unedited model" in caplog.text
    read = Run.read(tmp_path)
    assert read.rows()[0][0] == "nothing learnt"
    assert read.record["best_eval_loss"] == pytest.approx(base)
    assert run.record["held_out"]["edited"] > run.record["held_out"]["base"]
    edits.detach()
    headedit.load(model, tmp_path)
    assert torch.equal(logits(model, ids), before)
