"""``headedit train``, killed at any moment and resumed, ends with the edits of a run that was never killed.

``HEADEDIT_RUN_KILLS`` is the number of kills for each recipe.
"""

import itertools
import json
import os

import pytest
import torch
import yaml
from killed_runs import ORDER, KilledRuns
from run_inputs import save_model, save_records
from safetensors.torch import load_file

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="the runs are forks of one process")

KILLS = int(os.environ.get("HEADEDIT_RUN_KILLS", "2"))
RECIPES = {
    "localise": {"search_epochs": 1, "epochs": 1, "min_steps": 1},
    "jola": {"epochs": 4, "patience": 1, "gate_lr": 0.5, "vector_lr": 0.05},
    "lofit": {"epochs": 2, "share": 0.25},
    "ist": {"epochs": 3, "min_steps": 1},
}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("model"), num_attention_heads=2)


@pytest.fixture
def config(model, request, tmp_path):
    """The file of a run that saves checkpoints in the middle of its epochs."""
    recipe = request.param
    content = {
        "model": {"name": model, "device": "cpu"},
        "data": {"train": save_records(tmp_path, "commonsense", 18), "valid": 4, "test": 2},
        "recipe": {"name": recipe, "batch_size": 4, **RECIPES[recipe]},
        "training": {"save_strategy": "steps", "save_steps": 2},
        "output": str(tmp_path / "out"),
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(content))
    return tmp_path / "run.yaml"


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def record(folder):
    return {**json.loads((folder / "run.json").read_text()), "seconds": 0, "date": ""}


@pytest.mark.parametrize("config", RECIPES, indirect=True)
def test_a_run_that_was_killed_and_resumed_ends_with_the_same_edits(config, tmp_path):
    runs = KilledRuns(config, tmp_path)
    whole = load_file(runs.whole / "headedit.safetensors")
    moments, number = itertools.cycle(ORDER), 0
    while sum(runs.kills.values()) < KILLS:
        output = tmp_path / f"killed-{number}"
        for attempt in range(1 + (number + 1) % 3):
            if not runs.killed(output, next(moments), resume=attempt > 0):
                break
        runs.finish(output)
        edits = load_file(output / "headedit.safetensors")
        assert edits.keys() == whole.keys()
        assert all(torch.equal(edits[name], whole[name]) for name in whole)
        assert (output / "history.jsonl").read_text() == (runs.whole / "history.jsonl").read_text()
        assert record(output) == record(runs.whole)
        assert files(output) == files(runs.whole)
        number += 1
    print(f"\n{config.read_text()}\n{sum(runs.kills.values())} kills of {runs.finished} runs: {dict(runs.kills)}")
