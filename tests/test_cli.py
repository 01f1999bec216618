"""The command line from files to saved edits, and what it says when something is wrong."""

import json
import os
import re
import subprocess
import sys

import pytest
from command_lines import commands, parse
from tiny import tiny_model
from transformers import AutoTokenizer

import headedit
from headedit.cli.main import main
from headedit.demo import MODEL_FOLDER, tasks
from headedit.specs import registry


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    """A tiny random Llama saved to disk, with a tokenizer."""
    folder = tmp_path_factory.mktemp("model")
    tiny_model("llama").save_pretrained(folder)
    AutoTokenizer.from_pretrained(MODEL_FOLDER).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def data(tmp_path):
    rows = [
        {"instruction": f"{r['prompt']}", "input": "", "output": "long", "answer": r["response"]}
        for r in tasks.records("sort", 30, cued=True, seed=0)
    ]
    (tmp_path / "train.json").write_text(json.dumps(rows))
    return str(tmp_path / "train.json")


def run(*arguments):
    """Runs a command in this process; its exit code."""
    with pytest.raises(SystemExit) as caught:
        main([str(a) for a in arguments])
    return caught.value.code


def test_the_commands_lead_from_files_to_edits_to_figures_and_pictures(model_folder, data, tmp_path, capsys):
    out = tmp_path / "out"
    quick = ["--set", "epochs=2", "--set", "scale_lr=1e-2", "--device", "cpu"]
    quick += ["--set", "min_steps=1", "--set", "search_epochs=2"]
    assert run("train", "--model", model_folder, "--data", data, "--output", out, *quick) == 0
    printed = capsys.readouterr().out
    assert "trainable params: 272 ||" in printed
    assert "30 to train on, 0 to validate on" in printed
    record = json.loads((out / "run.json").read_text())
    assert (record["steps"], record["settings"]["scale_lr"]) == (14, 0.01)
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", record["date"])
    assert record["base_model"] == os.path.basename(model_folder)

    report = tmp_path / "reports" / "report.json"
    arguments = ["--data", data, "--limit", 10, "--output", report, "--device", "cpu"]
    assert run("eval", "--model", model_folder, "--edits", out, *arguments) == 0
    assert "constant answer" in capsys.readouterr().out
    figures = json.loads(report.read_text())
    assert figures["n"] == 10
    assert figures["base"]["metrics"] == {"accuracy": 0.0}
    assert figures["constant"]["value"] >= 0.1

    assert run("eval", "--model", model_folder, "--data", data, "--device", "cpu", "--limit", 3) == 0
    assert "edited model" not in capsys.readouterr().out

    assert run("plot", out, "--output", tmp_path / "pictures") == 0
    assert sorted(p.name for p in (tmp_path / "pictures").iterdir()) == ["gates.png", "history.png", "path.png"]
    (out / "history.jsonl").unlink()
    assert run("plot", out) == 0
    assert (out / "gates.png").read_bytes()[:4] == b"\x89PNG"


def test_train_takes_json_lines_with_a_validation_file_a_limit_and_layers(model_folder, tmp_path):
    for name, seed in (("train", 1), ("valid", 2)):
        rows = tasks.records("copy", 12, cued=True, seed=seed)
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    arguments = ["train", "--model", model_folder, "--data", tmp_path / "train.jsonl", "--device", "cpu"]
    arguments += ["--valid", tmp_path / "valid.jsonl", "--limit", 8, "--layers", "1:", "--set", "epochs=1"]
    arguments += ["--recipe", "jola"]
    for name in ("a", "b"):
        assert run(*arguments, "--output", tmp_path / name) == 0
    assert (tmp_path / "a/headedit.safetensors").read_bytes() == (tmp_path / "b/headedit.safetensors").read_bytes()
    record = json.loads((tmp_path / "a/run.json").read_text())
    assert (record["train_examples"], record["valid_examples"]) == (8, 12)
    assert [s.layer for s in headedit.load(tiny_model("llama"), tmp_path / "a").sites] == [1]


def test_broken_records_are_skipped_when_asked_and_counted(model_folder, tmp_path, capsys):
    rows = tasks.records("copy", 12, cued=True, seed=1)
    lines = [*map(json.dumps, rows), "{oops"]
    (tmp_path / "d.jsonl").write_text("\n".join(lines))
    arguments = ["train", "-m", model_folder, "-d", tmp_path / "d.jsonl", "-o", tmp_path / "out", "--set", "epochs=1"]
    arguments += ["--recipe", "jola"]
    assert run(*arguments, "--device", "cpu", "--skip-broken") == 0
    printed = capsys.readouterr().out
    assert "line 13" in re.sub(r"\s+", " ", printed)
    assert "1 broken records" in printed


def mistakes(model_folder, tmp_path):
    """(arguments, what the message must say) for every mistake of a newcomer that the issue names."""
    good = json.dumps({"prompt": "a", "response": "b"})
    files = {
        "good.jsonl": "\n".join([good] * 10),
        "broken.jsonl": f"{good}\n{{oops",
        "empty.jsonl": "",
        "one.jsonl": good,
        "spec.yaml": "model_types: [llama]\nsites: {attention: {path: 'layers.{layer}.o', head: 4}}",
        "file": "",
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    headless = tmp_path / "headless"
    tiny_model("llama").save_pretrained(headless)
    AutoTokenizer.from_pretrained(MODEL_FOLDER).save_pretrained(headless)
    config = json.loads((headless / "config.json").read_text())
    (headless / "config.json").write_text(
        json.dumps({**config, "model_type": "mamba", "architectures": ["MambaForCausalLM"]})
    )
    headedit.attach(tiny_model("qwen3")).save_pretrained(tmp_path / "qwen_edits")

    def train(*more, model=model_folder, data="good.jsonl", output="out"):
        device = ["--device", "cpu"]
        return ["train", "--model", model, "--data", tmp_path / data, "--output", tmp_path / output, *device, *more]

    evaluate = ["eval", "--model", model_folder, "--data", tmp_path / "good.jsonl", "--device", "cpu"]
    return {
        "unknown model type": (
            train(),
            r"No spec knows the model type 'llama'\. Did you mean 'lama'\?.*headedit spec draft",
        ),
        "a type without heads": (
            train(model=headless),
            r"The model type mamba cannot be edited: its mixer is channel-wise",
        ),
        "spec with a wrong key": (
            train("--spec", tmp_path / "spec.yaml"),
            r"spec\.yaml: sites: attention: unknown key 'head'\. Did you mean 'heads'\?",
        ),
        "broken line": (train(data="broken.jsonl"), r"broken\.jsonl, line 2: not valid JSON.*--skip-broken"),
        "empty set": (train(data="empty.jsonl"), r"empty\.jsonl: there is nothing to use"),
        "too few to split": (train("--valid-share", "0.2", data="one.jsonl"), r"1 records cannot be split.*--valid"),
        "no such file": (train(data="none.jsonl"), r"none\.jsonl: cannot be read \(No such file"),
        "no such model": (train(model="/nowhere"), r"No model could be loaded from '/nowhere'\. Give a folder"),
        "no such device": (train("--device", "cuda:9"), r"cannot be moved to the device 'cuda:9'"),
        "unwritable output": (train(output="file/out"), r"file/out: cannot be written.*Choose another output folder"),
        "no such recipe": (train("--recipe", "jolla"), r"There is no recipe 'jolla'\. Did you mean 'jola'\?"),
        "no such setting": (
            train("--set", "epoch=3"),
            r"recipe localise: unknown key 'epoch'\. Did you mean 'epochs'\?",
        ),
        "half a setting": (train("--set", "epochs"), r"epochs: expected name=value"),
        "layers not there": (train("--layers", "7:"), r"layers: found '7:', but no layer is left"),
        "layers not a slice": (train("--layers", "7-9"), r"layers: found '7-9', expected a slice"),
        "edits of another model": (
            [*evaluate, "--edits", tmp_path / "qwen_edits"],
            r"qwen_edits: these edits were made for another model.*model_type: edits qwen3, model llama",
        ),
        "no edits": ([*evaluate, "--edits", tmp_path], r"holds no headedit\.safetensors"),
        "report not writable": ([*evaluate, "--output", tmp_path / "file" / "r.json"], r"file: cannot be written"),
        "nothing to plot": (["plot", tmp_path / "none"], r"no saved edits here"),
        "no such task": (["demo", "--task", "rever", "--output", tmp_path / "demo"], r"Did you mean 'reverse'\?"),
    }


NAMES = [
    "unknown model type",
    "a type without heads",
    "spec with a wrong key",
    "broken line",
    "empty set",
    "too few to split",
    "no such file",
    "no such model",
    "no such device",
    "unwritable output",
    "no such recipe",
    "no such setting",
    "half a setting",
    "layers not there",
    "layers not a slice",
    "edits of another model",
    "no edits",
    "report not writable",
    "nothing to plot",
    "no such task",
]


@pytest.mark.parametrize("name", NAMES)
def test_a_mistake_ends_with_exit_code_2_and_one_message_and_leaves_no_file(
    name, model_folder, tmp_path, capsys, monkeypatch
):
    table = mistakes(model_folder, tmp_path)
    if name == "unknown model type":  # all that transformers has are known, so ours are taken away
        monkeypatch.setattr(registry, "packaged_specs", lambda: {"lama": None})
    assert sorted(table) == sorted(NAMES)
    before = sorted(tmp_path.rglob("*"))
    arguments, message = table[name]
    assert run(*arguments) == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    said = [line for line in re.split(r"[\r\n]+", error) if line.startswith("headedit: ")]
    assert len(said) == 1
    assert re.search(message, said[0])
    assert sorted(tmp_path.rglob("*")) == before


def test_debug_shows_the_traceback_at_any_place_in_the_line():
    for arguments in (["--debug", "plot", "/nowhere"], ["plot", "/nowhere", "--debug"]):
        with pytest.raises(headedit.HeadEditError):
            main(arguments)


def test_an_error_in_headedit_itself_is_reported_as_one_with_exit_code_1(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("headedit.interpret.plots.gates", lambda *a, **k: 1 / 0)
    assert run("plot", tmp_path) == 1
    error = capsys.readouterr().err
    assert "an error in headedit itself" in error
    assert "ZeroDivisionError" in error
    with pytest.raises(ZeroDivisionError):
        main(["plot", str(tmp_path), "--debug"])


COMMANDS = {words: command for words, command in commands() if not hasattr(command, "commands") or words == "bench"}


@pytest.mark.parametrize("words", COMMANDS)
def test_the_help_of_a_command_has_an_example_that_parses(words, capsys):
    examples = re.findall(r"Example: `(headedit [^`]+)`", COMMANDS[words].help)
    assert examples
    assert [parse(line) for line in examples] == [words] * len(examples)
    assert run(*words.split(), "--help") == 0
    assert f"headedit {words}" in re.sub(r"\s+", " ", capsys.readouterr().out.replace("│", " ")).split("Example:")[1]


def test_every_command_and_option_has_a_help_text():
    silent = [
        f"headedit {words} {parameter.name}"
        for words, command in commands()
        for parameter in command.params
        if not (parameter.help or "").strip()
    ]
    assert len(COMMANDS) > 20
    assert silent == []
    assert [words for words, command in commands() if not command.help] == []


def test_usage_errors_end_with_exit_code_2(capsys):
    assert run("train") == 2
    assert "--model, --data and --output: not given." in capsys.readouterr().err
    assert run("bench", "--hidden", 100) == 2
    assert "expected a multiple of 16" in capsys.readouterr().err


def test_version_prints_the_version(capsys):
    assert run("--version") == 0
    assert headedit.__version__ in capsys.readouterr().out


def test_python_dash_m_headedit_is_the_command_headedit():
    command = [sys.executable, "-m", "headedit", "plot", "/nowhere"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("headedit: /nowhere: ")
    assert done.stdout == ""
