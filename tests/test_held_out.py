"""Every run ends with the loss of base and edited model on examples that were held out, if there are any."""

import io
import sys
from types import ModuleType, SimpleNamespace

import pytest
from tiny import tiny_model
from transformers import TrainerControl, TrainerState
from transformers.utils import logging

import headedit
from headedit import Run
from headedit.data.batches import PadRight
from headedit.data.encoding import encode
from headedit.data.losses import example_losses
from headedit.evaluation.answers.generation import by_length
from headedit.io.bars import bars_of_libraries, is_shown, write_above_bars
from headedit.training.loop.progress import EditProgress

ROWS = [{"input_ids": [3, 4 + i % 5, 5 + i % 7, 9], "labels": [-100, -100, 5 + i % 7, 9]} for i in range(24)]
QUICK = {"epochs": 1, "progress": False, "batch_size": 8}


def mean_loss(edits, rows):
    return example_losses(edits.model, rows, PadRight(0), 32).mean().item()


@pytest.mark.parametrize("recipe", ["jola", "lofit", "ist", "refit", "ungated", "localise"])
def test_a_run_with_a_validation_set_has_the_loss_of_base_and_edited_model_on_it(recipe, tmp_path):
    edits = headedit.attach(tiny_model("llama"))
    base = mean_loss(edits, ROWS[:6])
    options = {**QUICK, **({"search_epochs": 1} if recipe == "localise" else {})}
    run = headedit.fit(edits, ROWS[6:], ROWS[:6], recipe=recipe, output_dir=tmp_path, **options)
    found = run.record["held_out"]
    assert (found["examples"], found["by"]) == (6, "given as the validation set")
    assert found["base"] == pytest.approx(base)
    assert found["edited"] == pytest.approx(mean_loss(edits, ROWS[:6]))
    assert run.record["best_eval_loss"] is not None
    shown = dict(Run.read(tmp_path).rows())["loss on held-out examples"]
    assert (
        shown
        == f"{found['edited']:.4f} nats per token, the base's {base:.4f}, on 6 examples, given as the validation set"
    )


def test_localise_says_how_many_examples_it_held_out_itself(tmp_path):
    edits = headedit.attach(tiny_model("llama"))
    base = mean_loss(edits, ROWS)
    run = headedit.fit(edits, ROWS, output_dir=tmp_path, search_epochs=1, folds=4, **QUICK)
    found = run.record["held_out"]
    assert (found["examples"], found["by"]) == (24, "held out in 4 folds by the recipe localise")
    assert found["base"] == pytest.approx(base)
    assert found["edited"] == run.path.level_of(run.path.chosen).loss


def test_a_run_without_held_out_examples_says_so(tmp_path):
    run = headedit.fit(headedit.attach(tiny_model("llama")), ROWS, recipe="ungated", output_dir=tmp_path, **QUICK)
    assert run.record["held_out"] is None
    assert "no examples were held out" in dict(run.rows())["loss on held-out examples"]


def test_controls_that_a_metric_alone_measured_have_that_metric_in_the_table_of_the_run(tmp_path):
    edits = headedit.attach(tiny_model("llama"))
    run = headedit.fit(edits, ROWS, recipe="refit", controls=True, metric=lambda: 0.75, output_dir=tmp_path, **QUICK)
    gates = run.controls["no gate"]["gates"]
    assert run.controls["no gate"]["validation_loss"] is None
    assert dict(run.rows())["control: no gate"] == f"metric 0.75 with {gates} gates"


@pytest.mark.parametrize("terminal", [False, True])
def test_bars_show_the_stage_in_a_terminal_and_are_not_in_log_files(terminal, monkeypatch):
    stream = io.StringIO()
    stream.isatty = lambda: terminal
    monkeypatch.setattr(sys, "stderr", stream)
    bar = EditProgress("refit")
    state = TrainerState(max_steps=3)
    bar.on_train_begin(None, state, TrainerControl())
    bar.training_bar.update(1)
    bar.training_bar.close()
    assert ("refit" in stream.getvalue()) == terminal


@pytest.mark.parametrize("terminal", [False, True])
def test_bars_outside_training_are_not_in_log_files_either(terminal, monkeypatch):
    stream = io.StringIO()
    stream.isatty = lambda: terminal
    monkeypatch.setattr(sys, "stderr", stream)
    assert list(by_length([3, 4], 1, True, "scoring")) == [[1], [0]]
    encode(ROWS, tokenizer=None, name="training", max_length=None, progress=True)
    monkeypatch.setattr(logging, "_tqdm_active", True)
    with bars_of_libraries():
        assert logging.is_progress_bar_enabled() == terminal
    assert logging.is_progress_bar_enabled()
    assert [name in stream.getvalue() for name in ("scoring", "tokenising training")] == [terminal, terminal]


def test_what_a_run_will_do_fits_a_narrow_terminal(monkeypatch):
    stream = io.StringIO()
    stream.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("COLUMNS", "40")
    write_above_bars("localise: search 300 steps, refit 300 steps: 24 passes over the examples")
    lines = stream.getvalue().splitlines()
    assert len(lines) == 2
    assert max(map(len, lines)) <= 40


@pytest.mark.parametrize("config", [None, {}, {"IPKernelApp": {}}])
def test_bars_are_shown_in_a_running_notebook_and_not_because_its_kernel_is_imported(config, monkeypatch):
    shell = None if config is None else SimpleNamespace(config=config)
    monkeypatch.setitem(sys.modules, "ipykernel", ModuleType("ipykernel"))
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert is_shown() == bool(config)


def test_the_pruning_path_of_localise_has_the_base_models_loss_and_those_of_its_refits(tmp_path):
    edits = headedit.attach(tiny_model("llama"))
    base = mean_loss(edits, ROWS[:6])
    options = {**QUICK, "search_epochs": 1, "min_steps": 1, "searches": 1, "checks": True}
    path = headedit.fit(edits, ROWS[6:], ROWS[:6], recipe="localise", output_dir=tmp_path, **options).path
    assert path.base_loss == pytest.approx(base)
    assert path.chosen in path.refits
    assert all(loss > 0 for loss in path.refits.values())
