"""A run that is killed at any moment and resumed ends with the edits of an uninterrupted run, bit for bit."""

import gc
import hashlib
import json
import os
import random
import signal
import time

import pytest
import torch
from tiny import tiny_model

import headedit
from headedit import HeadEditError, HeadEditTrainer
from headedit.data.batches import StoredRows
from headedit.training import fit
from headedit.training.loop import checkpoints
from headedit.training.recipes.session import CHECKPOINTS

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forked processes")

ROWS = [{"input_ids": [i, i + 1, 3 + i % 7], "labels": [-100, i + 1, 3 + i % 7]} for i in range(3, 27)]
LOCALISE = {"recipe": "localise", "search_epochs": 2, "epochs": 2, "min_steps": 1, "batch_size": 8}
JOLA = {"recipe": "jola", "epochs": 5, "patience": 1, "gate_lr": 0.5, "vector_lr": 0.5, "batch_size": 4}
IST = {"recipe": "ist", "epochs": 3, "min_steps": 1, "patience": 3}
FILES = ("headedit.safetensors", "history.jsonl", "path.safetensors", "path.json")


def train(folder, **settings):
    edits = headedit.attach(tiny_model("llama", num_attention_heads=2))
    return fit.fit(edits, ROWS[:16], ROWS[16:], output_dir=folder, progress=False, **settings)


def result(folder):
    """Hashes of the files of a run, and its record without times."""
    found = {}
    for name in FILES:
        if (folder / name).is_file():
            found[name] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    record = json.loads((folder / "run.json").read_text())
    return found, {key: value for key, value in record.items() if key not in ("seconds", "date")}


def in_child(work, kill=None):
    """Runs in a forked process, which ``kill`` may kill; whether it finished."""
    child = os.fork()
    if child == 0:
        code = 1
        gc.freeze()  # the garbage collector skips what other tests left in memory
        try:
            with open(os.devnull, "w") as nowhere:
                os.dup2(nowhere.fileno(), 1)
                work()
            code = 0
        finally:
            os._exit(code)
    if kill is not None:
        kill(child)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.waitstatus_to_exitcode(status) == 0, "the run failed on its own"
    return not os.WIFSIGNALED(status)


def dying_at_write(work, number):
    """The work, in a process that kills itself during its n-th write of a file."""
    count = 0

    def counted(call):
        def wrapped(*args, **kwargs):
            nonlocal count
            count += 1
            if count == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*args, **kwargs)

        return wrapped

    def run():
        os.replace, os.fsync = counted(os.replace), counted(os.fsync)
        torch.save = counted(torch.save)
        work()

    return run


@pytest.mark.parametrize("settings", [LOCALISE, JOLA, IST], ids=lambda s: s["recipe"])
def test_a_run_killed_at_random_writes_ends_with_the_same_files(settings, tmp_path):
    train(tmp_path / "whole", **settings)
    rng, kills = random.Random(7), 0
    folder = tmp_path / "killed"
    while not in_child(dying_at_write(lambda: train(folder, resume=True, **settings), rng.randint(5, 30))):
        kills += 1
        assert kills < 30
    assert kills >= 2
    assert result(folder) == result(tmp_path / "whole")
    assert not (folder / CHECKPOINTS / "journal").exists()


def test_a_run_killed_at_random_times_ends_with_the_same_files(tmp_path):
    started = time.perf_counter()
    assert in_child(lambda: train(tmp_path / "whole", **LOCALISE))
    seconds = time.perf_counter() - started
    rng, kills = random.Random(3), 0
    folder = tmp_path / "killed"

    def kill(child):
        time.sleep(rng.uniform(0.1, 0.6) * seconds)
        os.kill(child, signal.SIGKILL)

    while not in_child(lambda: train(folder, resume=True, **LOCALISE), kill if kills < 4 else None):
        kills += 1
    assert kills >= 2
    assert result(folder) == result(tmp_path / "whole")


def test_a_run_with_seeds_and_controls_is_resumed(tmp_path):
    settings = {"recipe": "refit", "epochs": 2, "min_steps": 1, "seeds": 2, "controls": True}
    train(tmp_path / "whole", **settings)
    kills, folder = 0, tmp_path / "killed"
    while not in_child(dying_at_write(lambda: train(folder, resume=True, **settings), 25 * (kills + 1))):
        kills += 1
    assert kills >= 2
    assert result(folder) == result(tmp_path / "whole")
    assert result(folder / "seed-1") == result(tmp_path / "whole" / "seed-1")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_the_step_and_the_message_says_how_to_resume(number, tmp_path, monkeypatch):
    train(tmp_path / "whole", **JOLA)
    step = HeadEditTrainer.training_step

    def interrupted(self, *args, **kwargs):
        if self.state.global_step == 6:
            os.kill(os.getpid(), number)
        return step(self, *args, **kwargs)

    monkeypatch.setattr(HeadEditTrainer, "training_step", interrupted, raising=False)
    handler = signal.getsignal(number)
    with pytest.raises(
        KeyboardInterrupt, match=r"stopped after step 7, which is saved; continue from there with resume=True"
    ):
        train(tmp_path / "stopped", **JOLA)
    assert signal.getsignal(number) is handler
    last = checkpoints.last_complete(tmp_path / "stopped" / CHECKPOINTS / "01-jola")
    assert last.name == "checkpoint-7"
    monkeypatch.undo()
    train(tmp_path / "stopped", resume=True, **JOLA)
    assert result(tmp_path / "stopped") == result(tmp_path / "whole")


def test_a_resumed_run_recognises_its_examples_on_disk(tmp_path):
    datasets = pytest.importorskip("datasets")

    def run(rows=ROWS[:16]):
        edits = headedit.attach(tiny_model("llama", num_attention_heads=2))
        stored = StoredRows(datasets.Dataset.from_list(rows))
        fit.fit(edits, stored, ROWS[16:], output_dir=tmp_path / "stored", progress=False, resume=True, **JOLA)

    train(tmp_path / "whole", **JOLA)
    assert not in_child(dying_at_write(run, 20))
    with pytest.raises(HeadEditError, match=r"differs in training examples\. Resume with"):
        run(ROWS[1:17])
    run()
    assert result(tmp_path / "stored") == result(tmp_path / "whole")


def test_a_run_with_other_settings_is_not_resumed(tmp_path):
    assert not in_child(dying_at_write(lambda: train(tmp_path, **LOCALISE), 8))
    with pytest.raises(HeadEditError, match=r"run that was stopped here differs in settings\. Resume with"):
        train(tmp_path, resume=True, **{**LOCALISE, "scale_lr": 0.01})
    run = train(tmp_path, **LOCALISE)  # without resume it starts again
    assert run.record["steps"] > 0


def test_a_full_disk_loses_no_complete_checkpoint(tmp_path, monkeypatch):
    train(tmp_path / "whole", **JOLA)
    save, saves = torch.save, 0

    def full(*args, **kwargs):
        nonlocal saves
        saves += 1
        if saves > 5:
            raise OSError(28, "No space left on device")
        return save(*args, **kwargs)

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(
        HeadEditError,
        match=r"checkpoint-\d+: the checkpoint could not be written \(.*No space left.*complete\. Free some space",
    ):
        train(tmp_path / "full", **JOLA)
    place = tmp_path / "full" / CHECKPOINTS / "01-jola"
    assert checkpoints.last_complete(place) is not None
    assert all((folder / "headedit_checkpoint.json").is_file() for folder in place.iterdir())
    monkeypatch.undo()
    train(tmp_path / "full", resume=True, **JOLA)
    assert result(tmp_path / "full") == result(tmp_path / "whole")
