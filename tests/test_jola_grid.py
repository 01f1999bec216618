"""The shipped sweep ``jola-grid``: five configurations for each task, of which the validation loss chooses one."""

import json
import re
import shutil

import pytest
import yaml
from run_inputs import save_model, save_records

from headedit import HeadEditError
from headedit.cli.main import main
from headedit.runs.run import Run
from headedit.training.sweep.config import SweepConfig, find_sweep, plan_sweep
from headedit.training.sweep.rows import SweepRow, chosen


def run(*arguments):
    """Runs a command in this process; returns its exit code."""
    with pytest.raises(SystemExit) as caught:
        main([str(a) for a in arguments])
    return caught.value.code


def test_the_grid_has_five_configurations_for_each_of_the_eight_tasks():
    planned = plan_sweep(SweepConfig.read("jola-grid"))
    assert len(planned) == 40
    first = planned[:5]
    assert {p.task for p in first} == {"arc_c"}
    assert {p.config.data.train for p in first} == {"LLM-Adapters/dataset/ARC-Challenge/train.json"}
    rates = {p.fields["configuration"]: (p.config.recipe["vector_lr"], p.config.recipe["lr_schedule"]) for p in first}
    assert rates == {
        "released": (5e-3, "cosine"),
        "released-lower": (3e-3, "cosine"),
        "paper": (5e-4, "exponential"),
        "ours-lower": (1e-3, "cosine"),
        "ours-gates-close": (2e-2, "cosine"),
    }
    for p in planned:
        recipe = p.config.recipe
        assert (p.seed, p.config.data.examples, recipe["batch_size"], recipe["epochs"]) == (42, 200, 8, 20)
        assert (p.evaluate.tasks, p.evaluate.chosen) == ([p.task], True)
    comments = find_sweep("jola-grid").read_text()
    assert all(re.search(rf"^  {name}: .*# ours", comments, re.M) for name in ("ours-lower", "ours-gates-close"))


def test_the_grid_runs_and_evaluates_the_chosen_configurations_alone(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    place = tmp_path / "LLM-Adapters/dataset/boolq"
    place.mkdir(parents=True)
    records = save_records(place, "commonsense", 40)
    for split in ("train", "test"):
        shutil.copy(records, place / f"{split}.json")
    grid = yaml.safe_load(find_sweep("jola-grid").read_text())
    small = {"data.examples": 16, "data.valid": 8, "epochs": 1, "model.name": save_model(tmp_path / "model")}
    grid["set"], grid["evaluate"]["limit"] = {**small, "model.device": "cpu"}, 4
    (tmp_path / "grid.yaml").write_text(yaml.safe_dump(grid, sort_keys=False))
    command = ["sweep", "grid.yaml", "--task", "boolq", "--output", "out"]
    assert run(*command) == 0
    printed = " ".join(capsys.readouterr().out.split())
    record = json.loads((tmp_path / "out/sweep.json").read_text())
    losses = {
        row["fields"]["configuration"]: Run.read(tmp_path / row["folder"]).record["best_eval_loss"]
        for row in record["runs"]
    }
    assert list(losses) == list(grid["configurations"])
    (best,) = record["chosen"]
    name = best["fields"]["configuration"]
    assert losses[name] == min(losses.values())
    assert f"chosen on validation for boolq: configuration={name} (validation loss" in printed
    assert f"- chosen on validation for boolq: configuration={name}" in (tmp_path / "out/sweep.md").read_text()
    assert [row["fields"]["configuration"] for row in record["runs"] if "accuracy" in row["figures"]] == [name]
    assert len(list((tmp_path / "out").rglob("eval/*.json"))) == 1
    text = (tmp_path / "out/sweep.md").read_text()
    assert run(*command) == 0
    assert (tmp_path / "out/sweep.md").read_text() == text


def row(task, name, seed, loss, **others):
    figures = {} if loss is None else {"validation loss": loss}
    return SweepRow(task=task, fields={"configuration": name}, seed=seed, folder="", figures=figures, **others)


def test_the_lowest_mean_over_the_seeds_is_chosen_and_no_run_that_failed():
    rows = [
        *(row("one", "a", seed, loss) for seed, loss in enumerate((1.0, 3.0))),
        *(row("one", "b", seed, loss) for seed, loss in enumerate((1.5, 1.7))),
        row("one", "c", 0, 0.1),
        row("one", "c", 1, None, error="it broke"),
        row("two", "a", 0, 1.0),
        row("two", "b", 0, None),
    ]
    assert [(group.task, group.fields["configuration"]) for group in chosen(rows)] == [("one", "b"), ("two", "a")]
    assert chosen(rows[:2]) == []


def test_a_sweep_or_a_task_that_is_not_there_is_refused_with_the_nearest_name(capsys):
    with pytest.raises(HeadEditError, match=r"no sweep of this name\. Did you mean 'jola-grid'\?"):
        SweepConfig.read("jola-gird")
    assert run("sweep", "jola-grid", "--task", "bolq") == 2
    assert "The sweep has no task 'bolq'. Did you mean 'boolq'?" in capsys.readouterr().err
    with pytest.raises(HeadEditError, match="'seed' is set by the sweep"):
        SweepConfig(base="cpu-small", output="out", configurations={"a": {"seed": 1}})


def test_the_shipped_sweeps_are_listed_and_shown(capsys):
    assert run("config", "list") == 0
    assert "jola-grid The grid of JoLA" in re.sub(r"[│\s]+", " ", capsys.readouterr().out)
    assert run("config", "show", "jola-grid") == 0
    assert capsys.readouterr().out == find_sweep("jola-grid").read_text()
