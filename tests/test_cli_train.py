"""``headedit train`` from a file or a name: every shipped config, with a tiny model and data in the real format."""

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from run_inputs import save_model, save_records

import headedit
from headedit.cli.main import main
from headedit.edits.files.header import split_payload
from headedit.runs.run import Run
from headedit.training.config import read_run
from headedit.training.loop.interrupts import StopOnSignal

TENSORS = "headedit.safetensors"


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return {
        "llama": save_model(folder / "llama"),
        "olmo2": save_model(folder / "olmo2", "olmo2"),
        "wide": save_model(folder / "wide", hidden_size=64),
    }


def run(*arguments):
    """Runs a command in this process; returns its exit code."""
    with pytest.raises(SystemExit) as caught:
        main([str(a) for a in arguments])
    return caught.value.code


def changed(**settings):
    return [part for key, value in settings.items() for part in ("--set", f"{key.replace('__', '.')}={value}")]


def trained(folder):
    return split_payload((folder / TENSORS).read_bytes())[1]


FEW = {"data__examples": 16, "data__valid": 8, "epochs": 2}
SHIPPED = {  # config: model, data, overrides that make it small, optimiser steps
    "jola-commonsense": ("llama", "commonsense", FEW, 4),
    "jola-mmlu-pro": ("llama", "mmlu_pro", FEW, 4),
    "jola-gem": ("llama", "gem", FEW, 4),
    "olmo2-13b-sharegpt": (
        "olmo2",
        "sharegpt_lines",
        {**FEW, "data__examples": 32, "data__test": 4, "training__dataloader_num_workers": 2},
        4,
    ),
    "olmo2-13b-cpu": ("olmo2", "sharegpt_lines", {**FEW, "data__test": 4}, 4),
    "llama-70b-4bit": ("wide", "commonsense", FEW, 4),
    "cpu-small": ("llama", "alpaca", {"data__examples": 16, "data__valid": 8, "data__test": 4, "heads": 2}, 12),
}


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_config_runs(name, models, tmp_path, capsys):
    if name == "llama-70b-4bit":
        pytest.importorskip("bitsandbytes")
    model, kind, smaller, steps = SHIPPED[name]
    data, out = save_records(tmp_path, kind, 60), tmp_path / "out"
    given = changed(model__name=models[model], data__train=data, **smaller)
    assert run("train", name, *given, "--no-wandb", "--output", out) == 0
    printed = capsys.readouterr().out
    assert f"{smaller['data__examples']} of 60 records" in re.sub(r"[│\s]+", " ", printed)
    record, config = Run.read(out).record, read_run(out)
    assert record["steps"] == steps
    assert (record["recipe"], record["seed"]) == (read_run(name).recipe_name, read_run(name).seed)
    assert config.model.name == models[model]
    report = json.loads((out / "data.json").read_text())
    assert (report["train"]["used"], report["valid"]["used"]) == (smaller["data__examples"], 8)
    assert ("test_loss" in record) == ("test" in report)
    base = config.model.load()
    assert base.dtype == (torch.bfloat16 if config.model.dtype == "bfloat16" else torch.float32)
    edits = headedit.load(base, out)
    assert any(p.abs().sum() > 0 for p in edits.vector_parameters())


@pytest.fixture(scope="module")
def file(models, tmp_path_factory):
    """The file of a run, which has been run."""
    folder = tmp_path_factory.mktemp("run")
    content = {
        "model": {"name": models["llama"], "device": "cpu"},
        "data": {"train": save_records(folder, "commonsense", 40), "valid": 8, "max_length": 400},
        "recipe": {"name": "jola", "warmup_epochs": 0.5},
        "training": {"num_train_epochs": 2, "per_device_train_batch_size": 4, "learning_rate": 1e-2},
        "output": str(folder / "out"),
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(content))
    assert run("train", folder / "run.yaml") == 0
    return folder / "run.yaml"


def test_the_saved_config_repeats_the_run_bit_for_bit(file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for config, more in ((file.parent / "out" / "run.yaml", []), (file.parent / "out", ["--overwrite"])):
        assert run("train", config, "--output", "again", *more) == 0
        assert trained(tmp_path / "again") == trained(file.parent / "out")
    assert run("train", file, "--output", "other", "--set", "training.learning_rate=2e-2") == 0
    assert trained(tmp_path / "other") != trained(file.parent / "out")
    assert Run.read(tmp_path / "other").record["settings"]["vector_lr"] == 0.02


def test_options_without_a_file_make_the_same_run(file, tmp_path):
    config = read_run(file)
    given = changed(epochs=2, batch_size=4, vector_lr=1e-2, warmup_epochs=0.5, data__valid=8)
    options = ["--model", config.model.name, "--data", config.data.train, "--output", tmp_path / "out"]
    more = ["--recipe", "jola", "--max-length", 400, "--device", "cpu"]
    assert run("train", *options, *more, *given) == 0
    assert trained(tmp_path / "out") == trained(file.parent / "out")


def test_headedit_train_makes_the_same_run(file, tmp_path):
    seen = []
    run_of = headedit.train(
        file, output=str(tmp_path / "out"), progress=False, ready=lambda edits, data: seen.append(len(data.train))
    )
    assert trained(tmp_path / "out") == trained(file.parent / "out")
    assert seen == [32]
    assert run_of.edits.attached
    model = run_of.edits.model
    run_of.edits.detach()
    headedit.train(file, output=str(tmp_path / "two"), base=model, progress=False, data={"examples": 12}, epochs=1)
    assert Run.read(tmp_path / "two").record["train_examples"] == 12


def test_a_stopped_run_is_resumed_from_its_folder(file, tmp_path, monkeypatch, capsys):
    """With ``--resume`` the edits are those of a run that was not stopped."""
    out = tmp_path / "out"
    ends, steps = StopOnSignal.on_step_end, []

    def stop_at_nine(self, args, state, control, **kwargs):
        steps.append(state.global_step)
        self.requested = len(steps) == 9
        ends(self, args, state, control, **kwargs)

    monkeypatch.setattr(StopOnSignal, "on_step_end", stop_at_nine)
    assert run("train", file, "--output", out) == 130
    assert not (out / "run.json").exists()
    said = capsys.readouterr().err
    assert re.search(r"headedit: stopped after step 9, which is saved", said)
    assert said.endswith(f"To continue: headedit train {out} --resume\n")
    assert run("train", out) == 2
    assert "continue it with resume=True, or --resume" in capsys.readouterr().err
    assert run("train", out, "--resume") == 0
    assert steps == list(range(1, 17))
    assert trained(out) == trained(file.parent / "out")
    assert Run.read(out).record["steps"] == 16


def test_a_command_stopped_outside_a_step_says_what_is_saved(file, tmp_path, monkeypatch, capsys):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    out = file.parent / "out"
    monkeypatch.setattr("headedit.training.train.prepare", interrupted)
    assert run("train", file, "--output", tmp_path / "new") == 130
    assert "stopped before anything was saved" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
    assert run("train", out, "--resume") == 130
    assert f"the run is finished, and its edits are in {out}" in capsys.readouterr().err


def test_a_report_on_the_data_is_printed_and_saved(file, tmp_path, capsys):
    config = read_run(file)
    rows = json.loads(Path(config.data.train).read_text())
    long = {"instruction": "cat " * 900, "answer": "true"}
    (tmp_path / "train.json").write_text(json.dumps([*rows, {"answer": "x"}, long]))
    (tmp_path / "test.json").write_text(json.dumps(rows[:3]))
    data = {"train": tmp_path / "train.json", "test": tmp_path / "test.json", "valid": "null"}
    given = changed(**{f"data__{key}": value for key, value in data.items()}, epochs=1)
    assert run("train", file, *given, "--output", tmp_path / "out", "--skip-broken") == 0
    printed = re.sub(r"[│\s]+", " ", capsys.readouterr().out)
    assert "record 41: found the fields answer" in printed  # the path before it may be broken over lines
    assert "1 broken records" in printed
    assert "1 longer than 400 tokens and left out" in printed
    assert "3 test examples have a prompt of the training set, 3 the same response too" in printed
    assert re.search(r"test loss \d\.\d{4} nats per token, the base's \d\.\d{4}, on 3 examples", printed)
    report = json.loads((tmp_path / "out" / "data.json").read_text())
    assert (report["train"]["malformed"], report["train"]["dropped_indices"]) == (1, [41])
    assert report["train"]["indices"] == list(range(40))
    assert report["overlap"]["train/test"]["count"] == 3


def test_the_test_loss_is_measured_with_and_without_the_edits(file, tmp_path):
    found = headedit.train(file, output=str(tmp_path / "out"), data={"test": 6}, progress=False)
    record = Run.read(tmp_path / "out").record
    with found.edits.disable_adapter():
        config = read_run(file, {"data.test": 6})
        rows = headedit.load_data(config.data, config.model.load_tokenizer(), context=1024, progress=False).test
        losses = [
            found.edits.model(input_ids=torch.tensor([r["input_ids"]]), labels=torch.tensor([r["labels"]])).loss.item()
            for r in rows
        ]
    assert record["test_loss_base"] == pytest.approx(sum(losses) / 6, abs=1e-5)
    assert record["test_loss"] < record["test_loss_base"]
    assert f"| test loss | {record['test_loss']:.4f} nats per token |" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize(
    ("valid", "by", "evaluated"),
    [
        (["--valid-share", "0.25"], "held out of {data} by --valid-share (data.valid: 0.25)", "{data}"),
        (["--set", "data.valid=8"], "held out of {data} by data.valid: 8", "{data}"),
        (["--valid", "{valid}"], "from the file {valid}", "{valid}"),
    ],
)
def test_a_run_ends_with_who_held_out_what_and_the_command_to_go_on_with(
    valid, by, evaluated, models, tmp_path, capsys
):
    (tmp_path / "a folder").mkdir()
    files = {"data": save_records(tmp_path, "alpaca", 32), "valid": save_records(tmp_path / "a folder", "alpaca", 8)}
    out = tmp_path / "out"
    given = [
        "--model",
        models["llama"],
        "--data",
        files["data"],
        "--output",
        out,
        "--recipe",
        "jola",
        "--device",
        "cpu",
    ]
    assert run("train", *given, *[part.format(**files) for part in valid], *changed(epochs=1)) == 0
    found = Run.read(out).record["held_out"]
    assert (found["examples"], found["by"]) == (8, by.format(**files))
    last = capsys.readouterr().out.strip().splitlines()[-1]
    assert last.startswith("next: headedit eval ")
    assert ("trained on" in last) == (evaluated == "{data}")
    words = shlex.split(last.partition("next: headedit ")[2].partition("  (")[0])
    assert words[1:7] == ["--model", models["llama"], "--edits", str(out), "--data", evaluated.format(**files)]
    assert run(*words, "--limit", 2, "--max-new-tokens", 2) == 0


def test_the_base_models_folder_is_refused_as_output(file, tmp_path, capsys):
    base, link = tmp_path / "base", tmp_path / "link"
    shutil.copytree(read_run(file).model.name, base)
    link.symlink_to(base)
    before = {path.name: path.read_bytes() for path in base.iterdir()}
    for output, more in ((base, []), (link, []), (base / ".", ["--overwrite"])):
        assert run("train", file, "--model", base, "--output", output, *more) == 2
        assert "holds the base model; choose another output folder" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in base.iterdir()} == before


def test_a_finished_run_is_not_trained_over_by_the_command(file, tmp_path, capsys):
    out = tmp_path / "out"
    assert run("train", file, "--output", out, *changed(data__test=4)) == 0
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    again = ("train", out, *changed(training__learning_rate=3e-2))
    for command, message in (
        (("train", out), "holds a finished run"),
        (again, "holds a finished run"),
        ((*again, "--resume"), "the run that was finished here differs in settings"),
        (("train", out, "--resume", "--seed", 5), "the run that was finished here differs in training examples"),
    ):
        assert run(*command) == 2
        assert message in capsys.readouterr().err
        assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert run("train", out, "--resume") == 0
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert run(*again, "--overwrite") == 0
    assert Run.read(out).record["settings"]["vector_lr"] == 0.03
    assert read_run(out).recipe["vector_lr"] == 0.03


MISTAKES = {
    "nothing": (
        [],
        r"--model, --data and --output: not given\. Give them, or a run's file or name \(headedit config list\)",
    ),
    "no such name": (["jola-comonsense"], r"Did you mean 'jola-commonsense'\?"),
    "no such file": (["none.yaml"], r"none\.yaml: cannot be read"),
    "no output": (["FILE", "--set", "output=null"], r"no output folder: give output=\.\.\., or --output"),
    "no such optimiser": (
        ["FILE", "--set", "training.optim=adamv"],
        r"training: optim: found 'adamv', expected one of its names\. Did you mean",
    ),
    "no tracker": (
        ["FILE", "--set", "logging.report_to=wandb"],
        r"report_to: wandb needs a package: pip install wandb",
    ),
    "both devices": (
        ["FILE", "--set", "model.device_map=auto"],
        r"device_map: found 'auto' together with the device 'cpu'",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_reported_before_the_model_is_loaded(name, file, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("transformers.integrations.is_wandb_available", lambda: False)
    monkeypatch.setattr(headedit.training.config.ModelConfig, "load", lambda self: pytest.fail("loaded"))
    arguments, message = MISTAKES[name]
    output = [] if name in ("nothing", "no output") else ["--output", "out"]
    assert run("train", *(file if a == "FILE" else a for a in arguments), *output) == 2
    assert re.search(message, capsys.readouterr().err)
    assert list(tmp_path.iterdir()) == []


def test_shipped_configs_are_listed_and_shown(capsys):
    assert run("config", "list") == 0
    listed = re.sub(r"[│\s]+", " ", capsys.readouterr().out)
    assert "cpu-small A small run to try headedit on a CPU" in listed
    assert run("config", "show", "jola-commonsense") == 0
    shown = capsys.readouterr().out
    assert shown.startswith("# JoLA on one of the eight commonsense tasks")
    assert yaml.safe_load(shown)["recipe"]["name"] == "jola"
    assert run("config", "show", "jola") == 2
    assert "Configs: cpu-small" in capsys.readouterr().err
    assert run("config", "show", "missing.yaml") == 2
    assert "missing.yaml: cannot be read (No such file or directory)" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["config list", "config show", "sweep"])
def test_the_help_of_config_and_sweep_has_an_example(command, capsys):
    assert run(*command.split(), "--help") == 0
    assert f"headedit {command}" in re.sub(r"[│\s]+", " ", capsys.readouterr().out).split("Example:")[1]


def test_a_run_that_learns_nothing_says_so_first_and_ends_with_its_own_exit_code(tmp_path, capsys):
    rows = [{"prompt": "a b c", "response": "dadadadadada"}] * 16
    other = [{"prompt": "a b c", "response": "zxzxqqzxzxqq"}] * 8
    files = []
    for name, records in (("train", rows), ("valid", other)):
        files.append(tmp_path / f"{name}.jsonl")
        files[-1].write_text("".join(json.dumps(record) + "\n" for record in records))
    model = save_model(tmp_path / "model", initializer_range=0.3)
    given = ["--model", model, "--data", files[0], "--valid", files[1], "--output", tmp_path / "out"]
    assert run("train", *given, "--recipe", "ungated", *changed(epochs=40)) == 3
    printed = re.sub(r"[│\s]+", " ", capsys.readouterr().out)
    assert "nothing learnt: The edits were worse than the unedited model on 8 held-out examples" in printed
    assert "next:" not in printed


def test_the_command_line_says_how_sure_the_heads_are(models, tmp_path):
    data, out = save_records(tmp_path, "alpaca", 16), tmp_path / "out"
    given = ["--model", models["llama"], "--data", data, "--output", out, "--recipe", "ungated", "--bootstrap", "2"]
    assert run("train", *given, *changed(epochs=1)) in (0, 3)
    selection = Run.read(out).selection
    assert (selection.halves, selection.competitors) == (2, 32)
    assert 0 < len(selection.gates) <= 16
