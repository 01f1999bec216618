"""Evaluation and sweeps started by torchrun: what two processes leave and print is what one does."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from processes_evaluating import evaluated
from run_inputs import save_model, save_records

import headedit
from headedit import HeadEditError
from headedit.cli.main import main
from headedit.demo import MODEL_FOLDER, tasks
from headedit.hf.loading import load_model
from headedit.io.launch import as_if_alone
from headedit.training.sweep.config import SweepConfig, plan_sweep
from headedit.training.sweep.sharing import check_can_be_shared_out

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without distributed")

TIMES = ("seconds", "tokens_per_second", "examples_per_second")


def torchrun(*words):
    """Starts two processes as a user does."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *map(str, words)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)


def alone(*words):
    with pytest.raises(SystemExit) as caught:
        main([str(word) for word in words])
    assert caught.value.code == 0


def without_times(data):
    if isinstance(data, dict):
        return {key: without_times(value) for key, value in data.items() if key not in TIMES}
    return [without_times(item) for item in data] if isinstance(data, list | tuple) else data


def predictions(file):
    return [without_times(json.loads(line)) for line in file.read_text().splitlines()]


def said_by_headedit(stderr):
    return [line for line in stderr.splitlines() if line.startswith("headedit: ")]


def test_an_evaluation_by_torchrun_leaves_the_files_of_one_process_and_prints_once(tmp_path, capsys):
    model = load_model(str(MODEL_FOLDER), device="cpu")
    edits = headedit.attach(model)
    edits.set_head(1, 2, scale=0.0)
    edits.save_pretrained(tmp_path / "edits")
    scored = {"prompt": "{{ prompt }}", "answer": "response", "template": "plain", "data": {"path": "rows.json"}}
    (tmp_path / "free.yaml").write_text(yaml.safe_dump({**scored, "max_new_tokens": 10, "num_beams": 2}))
    options = {"options": ["a", "b c", "d"], "answer": "right", "scoring": "loglikelihood"}
    (tmp_path / "choice.yaml").write_text(yaml.safe_dump({**scored, **options}))
    rows = [{**row, "right": "abd"[i % 2 * 2]} for i, row in enumerate(tasks.records("swap", 23, cued=False, seed=5))]
    rows = [{**row, "right": ["a", "b c", "d"][i % 3]} for i, row in enumerate(rows)]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    words = ["eval", "--model", MODEL_FOLDER, "--edits", tmp_path / "edits", "--device", "cpu", "--batch-size", 3]
    words += ["--tasks", f"{tmp_path / 'free.yaml'},{tmp_path / 'choice.yaml'}", "--output"]
    alone(*words, tmp_path / "one")
    printed = capsys.readouterr().out
    done = torchrun("-m", "headedit", *words, tmp_path / "two")
    assert done.returncode == 0, done.stderr[-3000:]
    assert sorted(file.name for file in (tmp_path / "two").iterdir()) == sorted(
        file.name for file in (tmp_path / "one").iterdir()
    )
    for task in ("free", "choice"):
        one, two = (tmp_path / folder / f"{task}.predictions.jsonl" for folder in ("one", "two"))
        assert len(predictions(one)) == 1 + 2 * 23
        assert predictions(two) == predictions(one)
        one, two = (json.loads((tmp_path / folder / f"{task}.json").read_text()) for folder in ("one", "two"))
        assert without_times(two) == without_times(one)
    assert done.stdout.count("wrote ") == printed.count("wrote ") == 3
    assert not said_by_headedit(done.stderr)


def test_a_failure_in_one_process_is_raised_in_all_and_what_was_predicted_is_kept(tmp_path):
    done = torchrun(Path(__file__).with_name("processes_evaluating.py"), tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert first["error"] == second["error"] == "HeadEditError: row 7 is empty"
    assert first["stop"] == second["stop"] == "KeyboardInterrupt: by hand"
    assert 1 < first["kept"] < 21
    one = evaluated(load_model(str(MODEL_FOLDER), device="cpu"), tmp_path / "one.json")
    assert without_times(first["resumed"]) == without_times(second["resumed"]) == without_times(one.to_dict())
    lines = [predictions(tmp_path / f"{name}.predictions.jsonl") for name in ("stopped", "one")]
    assert sorted(lines[0][1:], key=lambda line: line["row"]) == sorted(lines[1][1:], key=lambda line: line["row"])
    assert first["differing"] == second["differing"]
    assert "Processes 0 and 1 evaluate different things: other weights. Give all" in first["differing"]
    assert without_times(first["alone"]) == without_times(one.to_dict())


FAILING = """
import os, signal, sys
from headedit.cli.main import main
from headedit.evaluation.answers import systems

predict = systems.answers

def answers(*args, **options):
    for batch in predict(*args, **options):
        yield batch
        if os.environ["RANK"] == "1":
            {}

systems.answers = answers
main(sys.argv[1:])
"""


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("raise ValueError('no such kernel')", "headedit: Process 1 of 2: ValueError: no such kernel"),
        ("os.kill(os.getpid(), signal.SIGINT)", "headedit: stopped."),
    ],
    ids=["an error", "Ctrl-C"],
)
def test_what_ends_one_process_of_a_command_ends_all_with_one_message(what, message, tmp_path):
    (tmp_path / "failing.py").write_text(FAILING.format(what))
    (tmp_path / "rows.json").write_text(json.dumps(tasks.records("swap", 40, cued=False, seed=5)))
    words = ["eval", "--model", MODEL_FOLDER, "--data", tmp_path / "rows.json", "--device", "cpu", "--batch-size", 2]
    done = torchrun(tmp_path / "failing.py", *words, "--output", tmp_path / "out")
    assert done.returncode != 0
    assert said_by_headedit(done.stderr) == [message]
    assert "wrote" not in done.stdout
    assert not list((tmp_path / "out").glob("*.md"))


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """The folder of a sweep of four runs, and a function that writes its file for an output."""
    folder = tmp_path_factory.mktemp("sweep")
    save_model(folder / "model")
    save_records(folder, "commonsense", 24)
    base = {
        "model": {"name": str(folder / "model"), "device": "cpu"},
        "data": {"train": str(folder / "commonsense.json"), "valid": 6, "test": 4},
        "recipe": {"name": "jola", "epochs": 1, "batch_size": 6, "vector_lr": 0.02},
    }
    (folder / "base.yaml").write_text(yaml.safe_dump(base))

    def written(name, **changes):
        content = {"base": "base.yaml", "seeds": [0, 1, 2, 3], "output": str(folder / name), **changes}
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(content))
        return folder / f"{name}.yaml"

    return folder, written


def test_a_sweep_by_torchrun_trains_each_run_once_as_one_process_does(sweep, capsys):
    folder, written = sweep
    alone("sweep", written("one"))
    capsys.readouterr()
    done = torchrun("-m", "headedit", "sweep", written("two"))
    assert done.returncode == 0, done.stderr[-3000:]
    for seed in range(4):
        one, two = (folder / name / f"seed-{seed}" / "headedit.safetensors" for name in ("one", "two"))
        assert two.read_bytes() == one.read_bytes()
    tables = []
    for name in ("one", "two"):
        record = json.loads((folder / name / "sweep.json").read_text())
        for run in record["runs"]:
            run["folder"] = Path(run["folder"]).name
        tables.append(without_times(record))
    assert tables[0] == tables[1]
    assert [run["seed"] for run in tables[1]["runs"]] == [0, 1, 2, 3]
    said = done.stdout.splitlines()
    starts, ended = (
        sum(line.endswith(end) for line in said) for end in (": starts", ": has ended, in another process")
    )
    assert starts + ended == 4
    assert min(starts, ended) >= 1
    assert done.stdout.count("wrote ") == 3


def test_runs_that_need_all_processes_are_not_shared_out(sweep, monkeypatch):
    _, written = sweep
    planned = plan_sweep(SweepConfig.read(written("plain")))
    check_can_be_shared_out(planned)
    spread = plan_sweep(SweepConfig.read(written("spread", set={"training": {"fsdp": True}})))
    with pytest.raises(HeadEditError, match=r"^seed 0: training: fsdp spreads each run over all processes"):
        check_can_be_shared_out(spread)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(HeadEditError, match=r"^The config of accelerate \(ACCELERATE_USE_FSDP\) spreads"):
        check_can_be_shared_out(planned)


def test_a_process_that_works_alone_sees_no_launcher_and_one_gpu(monkeypatch):
    launched = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_PORT": "1", "TORCHELASTIC_RUN_ID": "x"}
    for name, value in {**launched, "CUDA_VISIBLE_DEVICES": "4,6"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    before = dict(os.environ)
    with as_if_alone():
        assert not launched.keys() & os.environ.keys()
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "6"
    assert dict(os.environ) == before
    monkeypatch.setenv("LOCAL_RANK", "2")
    with as_if_alone():
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "4"


def test_runs_whose_names_give_the_same_folder_are_refused(sweep, capsys):
    _, written = sweep
    with pytest.raises(SystemExit, match="2"):
        main(["sweep", str(written("same", tasks=["a b", "a_b"])), "--dry-run"])
    assert "'a b, seed 0' and 'a_b, seed 0' would have the same folder" in capsys.readouterr().err
