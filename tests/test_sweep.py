"""``headedit sweep``: tasks, seeds and fields, each run in its own folder, resumable, with one table."""

import csv
import json
import re
import shlex
import signal
import statistics
from types import SimpleNamespace

import pytest
import yaml
from run_inputs import save_model, save_records

import headedit
from headedit import HeadEditError
from headedit.cli.main import main
from headedit.cli.sweep import evaluated
from headedit.evaluation.evaluate import task_settings
from headedit.evaluation.tasks.task_files import find_task
from headedit.hf.loading import load_model
from headedit.interpret.labels import with_error
from headedit.runs.run import Run
from headedit.training.config import ModelConfig, read_run
from headedit.training.loop.interrupts import StopOnSignal
from headedit.training.sweep import run as sweep_run
from headedit.training.sweep.config import EvaluateConfig, SweepConfig, plan_sweep
from headedit.training.sweep.rows import SweepRow, chosen, grouped

TASK = {"prompt": "{{ instruction }}", "answer": "answer", "options": ["true", "false"], "scoring": "loglikelihood"}


def run(*arguments):
    """Runs a command in this process; returns its exit code."""
    with pytest.raises(SystemExit) as caught:
        main([str(a) for a in arguments])
    return caught.value.code


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """A folder with a model, two tasks' data, their task files, and a base config."""
    folder = tmp_path_factory.mktemp("inputs")
    save_model(folder / "model")
    for task in ("one", "two"):
        (folder / task).mkdir()
        save_records(folder / task, "commonsense", 24)
        (folder / f"{task}.yaml").write_text(yaml.safe_dump(TASK))
    base = {
        "model": {"name": str(folder / "model"), "device": "cpu"},
        "data": {"train": "none.json", "valid": 6, "test": 4},
        "recipe": {"name": "jola", "epochs": 1, "batch_size": 6, "vector_lr": 0.02},
    }
    (folder / "base.yaml").write_text(yaml.safe_dump(base))
    return folder


def sweep_of(inputs, folder, **changes):
    """Writes the file of a sweep; returns its path."""
    content = {
        "base": "base.yaml",
        "set": {"data.train": f"{inputs}/{{task}}/commonsense.json"},
        "tasks": ["one", "two"],
        "seeds": [0, 5],
        "output": str(folder / "out"),
        **changes,
    }
    file = inputs / f"{folder.name}.yaml"
    file.write_text(yaml.safe_dump(content, sort_keys=False))
    return file


@pytest.fixture(scope="module")
def done(inputs, tmp_path_factory):
    """A finished sweep with an evaluation: its file, its folder, and how often the model was loaded."""
    folder = tmp_path_factory.mktemp("done")
    evaluate = {"tasks": [f"{inputs}/{{task}}.yaml"], "data": f"{inputs}/{{task}}/commonsense.json", "limit": 5}
    file = sweep_of(inputs, folder, evaluate=evaluate)
    loads = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "headedit.training.config.model.load_model", lambda *a, **k: loads.append(a) or load_model(*a, **k)
        )
        assert run("sweep", file) == 0
    return file, folder / "out", len(loads)


def test_a_sweep_plans_every_task_with_every_field_and_seed(inputs, tmp_path):
    file = sweep_of(
        inputs,
        tmp_path,
        set={"data.seed": "{seed}", "data.train": "{task}-{seed}.json"},
        tasks={"a": {}, "b": {"data.train": "other.json", "epochs": 9}},
        fields={"recipe.name": ["jola", "localise"], "model.dtype": ["float32"]},
    )
    planned = plan_sweep(SweepConfig.read(file, {"data.max_length": 77}))
    assert [(p.task, p.fields["recipe.name"], p.seed) for p in planned] == [
        (task, recipe, seed) for task in "ab" for recipe in ("jola", "localise") for seed in (0, 5)
    ]
    assert len({p.folder for p in planned}) == 8
    assert planned[1].folder == tmp_path / "out/a/recipe.name=jola/model.dtype=float32/seed-5"
    config = planned[1].config
    assert (config.data.train, config.data.seed, config.seed) == ("a-5.json", 5, 5)
    assert (planned[7].config.data.train, planned[7].config.recipe["epochs"]) == ("other.json", 9)
    assert planned[7].config.recipe_name == "localise"
    assert {p.config.data.max_length for p in planned} == {77}
    assert {p.config.model.dtype for p in planned} == {"float32"}


def test_a_sweep_without_tasks_has_a_run_per_seed(inputs, tmp_path):
    (planned,) = plan_sweep(SweepConfig(base="cpu-small", output=str(tmp_path), seeds=[3]))
    assert (planned.name, planned.folder) == ("seed 3", tmp_path / "seed-3")
    assert planned.config == read_run("cpu-small", {"seed": 3, "output": str(tmp_path / "seed-3")})


def test_a_run_of_a_sweep_equals_the_run_alone_and_the_model_is_loaded_once(done, tmp_path):
    _, out, loads = done
    assert loads == 1
    headedit.train(out / "two/seed-5", output=str(tmp_path / "alone"), progress=False)
    alone = (tmp_path / "alone/headedit.safetensors").read_bytes()
    assert alone == (out / "two/seed-5/headedit.safetensors").read_bytes()
    assert alone != (out / "two/seed-0/headedit.safetensors").read_bytes()


def test_the_table_has_mean_and_spread_over_seeds(done):
    _, out, _ = done
    losses = {
        task: [Run.read(out / task / f"seed-{seed}").record["test_loss"] for seed in (0, 5)] for task in ("one", "two")
    }
    scores = [json.loads((out / f"two/seed-{seed}/eval/two.json").read_text())["score"]["value"] for seed in (0, 5)]
    groups = json.loads((out / "sweep.json").read_text())["groups"]
    assert [(g["task"], g["over"], g["runs"]) for g in groups] == [
        ("one", "seeds", 2),
        ("two", "seeds", 2),
        ("mean", "tasks", 4),
    ]
    one, two, mean = (group["figures"] for group in groups)
    assert one["test loss"]["mean"] == pytest.approx(statistics.fmean(losses["one"]))
    assert one["test loss"]["std"] == pytest.approx(statistics.stdev(losses["one"]))
    assert two["accuracy"]["values"] == scores
    assert mean["test loss"]["mean"] == pytest.approx(statistics.fmean([*losses["one"], *losses["two"]]))
    lines = list(csv.DictReader((out / "sweep.csv").open()))
    assert [(line["task"], line["seed"]) for line in lines] == [("one", "0"), ("one", "5"), ("two", "0"), ("two", "5")]
    assert float(lines[3]["test loss"]) == losses["two"][1]
    table = (out / "sweep.md").read_text().splitlines()
    assert table[0].startswith(
        "| task | runs | validation loss | test loss | base test loss | seconds | edited heads | acc"
    )
    mean_loss, std = one["test loss"]["mean"], one["test loss"]["std"]
    assert with_error(mean_loss, std) in table[2]


def test_a_finished_run_is_not_run_again(done, capsys, monkeypatch):
    file, out, _ = done
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.safetensors")}
    text = (out / "sweep.md").read_text()
    monkeypatch.setattr(ModelConfig, "load", lambda self: pytest.fail("loaded"))
    assert run("sweep", file) == 0
    assert capsys.readouterr().out.count(": is finished") == 4
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert (out / "sweep.md").read_text() == text
    (out / "one/seed-0/eval/one.json").unlink()
    monkeypatch.undo()
    assert run("sweep", file) == 0
    assert (out / "sweep.md").read_text() == text
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_a_stopped_run_of_a_sweep_is_resumed(done, inputs, tmp_path, capsys, monkeypatch):
    _, reference, _ = done
    file = sweep_of(inputs, tmp_path)
    ends, steps = StopOnSignal.on_step_end, []

    def stop_at_the_fourth(self, args, state, control, **kwargs):
        steps.append(state.global_step)
        self.requested = len(steps) == 4
        ends(self, args, state, control, **kwargs)

    monkeypatch.setattr(StopOnSignal, "on_step_end", stop_at_the_fourth)
    assert run("sweep", file) == 130
    states = [sweep_run.run_state(planned.config) for planned in plan_sweep(SweepConfig.read(file))]
    assert states == ["finished", "stopped", "new", "new"]
    said = capsys.readouterr().err
    assert "headedit: stopped; 1 of 4 runs are finished ('one, seed 0').\n" in said
    assert "begun, and continued from what was saved last: 1 ('one, seed 5').\n" in said
    assert said.endswith(f"{tmp_path / 'out/sweep.md'}.\nTo continue: headedit sweep {file}\n")
    assert run("sweep", file, "--dry-run") == 0
    assert re.findall(r"\b(finished|stopped|new)\b", capsys.readouterr().out) == states
    assert run("sweep", file) == 0
    assert "[2/4] one, seed 5: resumes" in capsys.readouterr().out
    assert steps == [1, 2, 3] * 4
    for name in ("one/seed-5", "two/seed-0"):
        found = [folder / name / "headedit.safetensors" for folder in (tmp_path / "out", reference)]
        assert found[0].read_bytes() == found[1].read_bytes()


def test_a_dry_run_names_the_runs_whose_files_or_model_are_not_there(inputs, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(ModelConfig, "load", lambda self: pytest.fail("loaded"))
    changes = {"evaluate": {"tasks": [f"{inputs}/{{task}}.yaml"], "data": f"{inputs}/nowhere.json"}}
    file = sweep_of(inputs, tmp_path, tasks=["one", "three"], seeds=[0], **changes)
    assert run("sweep", file, "--dry-run") == 2
    told = capsys.readouterr()
    assert told.out.count(" new") == 2
    assert re.search(r"three, seed 0: .*three/commonsense\.json", told.err)
    assert re.search(r"one, seed 0: .*nowhere\.json", told.err)
    assert run("sweep", sweep_of(inputs, tmp_path), "--dry-run", "--set", "model.name=no-such-model") == 2
    assert "No model could be loaded from 'no-such-model'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_ctrl_c_outside_a_training_step_prints_the_command_that_continues_the_sweep(
    inputs, tmp_path, capsys, monkeypatch
):
    file, few = sweep_of(inputs, tmp_path), "data.examples=6"
    load, loaded = ModelConfig.load, []

    def interrupted(self):
        loaded.append(load(self))
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(ModelConfig, "load", interrupted)
    assert run("sweep", file, "--set", "data.train=my file.json", "--set", few) == 130
    said = capsys.readouterr().err
    assert len(loaded) == 1
    assert said.startswith("headedit: stopped; 0 of 4 runs are finished.\nTo continue: headedit sweep ")
    line = shlex.split(said.splitlines()[-1].removeprefix("To continue: "))
    assert line == ["headedit", "sweep", str(file), "--set", "data.train=my file.json", "--set", few]
    assert not (tmp_path / "out").exists()


def test_a_failed_run_is_reported_and_the_others_continue(inputs, tmp_path, capsys):
    file = sweep_of(inputs, tmp_path, tasks=["gone", "one"], seeds=[0])
    assert run("sweep", file) == 2
    captured = capsys.readouterr()
    assert re.search(
        r"1 of 2 runs failed, the first, in \S+gone\S+: .*gone/commonsense\.json: cannot be read", captured.err
    )
    rows = json.loads((tmp_path / "out/sweep.json").read_text())["runs"]
    assert [row["error"] is None for row in rows] == [False, True]
    assert "| gone | 0, 1 failed |" in (tmp_path / "out/sweep.md").read_text()


def test_a_folder_with_another_run_is_left_unchanged(done, inputs, monkeypatch):
    file, _, _ = done
    monkeypatch.setattr(sweep_run, "train", lambda *a, **k: pytest.fail("trained"))
    planned = plan_sweep(SweepConfig.read(file, {"vector_lr": 0.5}))
    message = r"out/one/seed-0: holds a run that differs in recipe\.vector_lr\. Choose another output folder"
    with pytest.raises(HeadEditError, match=message):
        list(sweep_run.run_sweep(planned, progress=False))


def test_the_mean_over_tasks_counts_tasks_and_not_runs():
    rows = [
        SweepRow(task=task, fields={}, seed=seed, folder="out", figures={"loss": 1.0})
        for task in ("arc", "boolq")
        for seed in (0, 1, 2)
    ]
    *tasks, mean = grouped(rows)
    assert [repr(group) for group in tasks] == [
        f"SweepGroup({name}, mean of 3 seeds: loss 1)" for name in ("arc", "boolq")
    ]
    assert repr(mean) == "SweepGroup(mean, mean of 2 tasks: loss 1)"
    assert "mean of 2 tasks" in mean._repr_html_()


def test_the_mean_has_the_figures_that_all_tasks_have():
    rows = [
        SweepRow(task=task, fields={}, seed=seed, folder="", figures={"loss": loss, task: 1.0})
        for task, losses in {"a": (1.0, 3.0), "b": (6.0, 8.0)}.items()
        for seed, loss in enumerate(losses)
    ]
    a, b, mean = grouped(rows)
    assert (a.figures["loss"].mean, b.figures["loss"].mean) == (2.0, 7.0)
    assert {name: spread.mean for name, spread in mean.figures.items()} == {"loss": 4.5}


def test_fields_whose_validation_loss_is_nan_are_not_chosen():
    rows = [
        SweepRow(task="", fields={"epochs": epochs}, seed=0, folder="x", figures={"validation loss": loss})
        for epochs, loss in ((1, float("nan")), (2, 3.0), (3, 2.0))
    ]
    assert [group.fields for group in chosen(rows)] == [{"epochs": 3}]
    assert chosen([rows[0], SweepRow(task="", fields={"epochs": 4}, seed=0, folder="x", error="stopped")]) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"limit": 9}, "boolq.json: is the report of another evaluation: limit was 5, is 9. Choose another output"),
        ({"data": "other"}, "data was 'records', is 'other'"),
        ({"changes": {"num_beams": 1}}, "num_beams was 4, is 1"),
    ],
)
def test_reports_of_other_settings_are_not_taken_for_those_of_a_sweep(changes, message, tmp_path):
    settings = {"task": task_settings(find_task("boolq")), "limit": 5, "data": "records"}
    value = {"value": 0.5}
    report = {"metric": "accuracy", "score": value, "base": value, "constant": value, "settings": settings}
    (tmp_path / "eval").mkdir()
    (tmp_path / "eval" / "boolq.json").write_text(json.dumps(report))

    def run(**fields):
        evaluate = EvaluateConfig(**{"tasks": ["boolq"], "limit": 5, "data": "records", **fields})
        return SimpleNamespace(folder=tmp_path, evaluate=evaluate)

    assert evaluated(run(), None)["accuracy"] == 0.5
    with pytest.raises(HeadEditError, match=re.escape(message)):
        evaluated(run(**changes), None)


MISTAKES = {
    "no base": ({"base": "jola-comonsense"}, r"Did you mean 'jola-commonsense'\?"),
    "a key": ({"seed": [1]}, r"unknown key 'seed'\. Did you mean 'seeds'\?"),
    "no seeds": ({"seeds": []}, r"seeds: the list is empty"),
    "a seed twice": ({"seeds": [1, 1]}, r"seeds: found \[1, 1\], in which a value occurs twice"),
    "a field of the run": ({"fields": {"recipe.nam": ["jola"]}}, r"recipe jola: unknown key 'nam'"),
    "a field without values": ({"fields": {"epochs": []}}, r"fields: epochs: the list is empty"),
    "ours to set": ({"set": {"output": "x"}}, r"'output' is set by the sweep"),
    "seeds of seeds": ({"set": {"data.train": "x"}, "base": "SEEDS"}, r"seeds: found 2; a sweep runs its own seeds"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_in_a_sweep_is_reported_before_any_run(name, inputs, tmp_path, capsys):
    changes, message = MISTAKES[name]
    if changes.get("base") == "SEEDS":
        base = tmp_path / "base.yaml"
        base.write_text((inputs / "base.yaml").read_text() + "\nseeds: 2\n")
        changes = {**changes, "base": str(base)}
    assert run("sweep", sweep_of(inputs, tmp_path, **changes)) == 2
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "out").exists()
