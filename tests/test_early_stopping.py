"""Early stopping: by how much a validation loss must be lower to count, and what is kept."""

import pytest
from run_inputs import save_model, save_records

import headedit
from headedit.data.config import DataConfig
from headedit.data.loading import load_data
from headedit.hf.loading import load_model, load_tokenizer


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """A model's folder, and data for training and validation."""
    folder = tmp_path_factory.mktemp("inputs")
    model = save_model(folder / "model")
    config = DataConfig(train=save_records(folder, "commonsense", 40), valid=8, max_length=400)
    return model, load_data(config, load_tokenizer(model), progress=False)


def run_of(inputs, folder, **settings):
    model, data = inputs
    edits = headedit.attach(load_model(model, device="cpu"))
    fields = {"recipe": "jola", "epochs": 4, "batch_size": 16, "vector_lr": 0.02, "warmup_epochs": 0.5, **settings}
    return headedit.fit(edits, data.train, data.valid, output_dir=folder, progress=False, **fields)


def test_a_gain_below_the_threshold_does_not_count_and_is_kept_all_the_same(inputs, tmp_path):
    usual = run_of(inputs, tmp_path / "usual", patience=1)
    losses = [row["eval_loss"] for row in usual.history.rows if "eval_loss" in row]
    assert losses == sorted(losses, reverse=True)
    assert usual.record["steps"] == 8
    stopped = run_of(inputs, tmp_path / "stopped", patience=1, early_stopping_threshold=losses[0] - losses[1] + 1e-4)
    assert stopped.record["steps"] == 4
    assert (stopped.record["kept_step"], stopped.record["best_eval_loss"]) == (4, losses[1])
    enough = run_of(inputs, tmp_path / "enough", patience=1, early_stopping_threshold=(losses[0] - losses[1]) / 2)
    assert enough.record["steps"] > 4


def test_a_run_that_keeps_its_last_edits_reports_their_loss(inputs, tmp_path):
    found = run_of(
        inputs, tmp_path, patience=1, early_stopping_threshold=10.0, arguments={"load_best_model_at_end": False}
    )
    assert (found.record["steps"], found.record["kept_step"]) == (4, 4)
    assert found.record["best_eval_loss"] == found.record["held_out"]["edited"]
