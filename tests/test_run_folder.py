"""The folder of a run: a finished or stopped run in it is never lost unasked, and nothing of the user's ever is."""

from pathlib import Path

import pytest
import torch
from tiny import tiny_model

import headedit
from headedit import HeadEditError
from headedit.runs.folder import folder_state
from headedit.training.loop.interrupts import StopOnSignal

ROWS = [{"input_ids": [i, i + 1, 3 + i % 7], "labels": [-100, i + 1, 3 + i % 7]} for i in range(3, 27)]
QUICK = {"recipe": "ungated", "epochs": 1, "min_steps": 1, "progress": False}


def fit(folder, rows=ROWS, **options):
    return headedit.fit(headedit.attach(tiny_model("llama")), rows, output_dir=folder, **{**QUICK, **options})


def stop(monkeypatch, folder, step=2, **options):
    """A run that a signal stops after a step."""
    ends = StopOnSignal.on_step_end

    def at_step(self, args, state, control, **kwargs):
        self.requested = state.global_step == step
        ends(self, args, state, control, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(StopOnSignal, "on_step_end", at_step)
        with pytest.raises(KeyboardInterrupt):
            fit(folder, **{"batch_size": 4, **options})


def content(folder):
    """Every file below a folder, with what is in it."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_finished_run_leaves_no_empty_folder(tmp_path):
    fit(tmp_path, valid=ROWS, seeds=2, controls=True)
    assert not [path for path in tmp_path.rglob("*") if path.is_dir() and not any(path.iterdir())]
    assert not (tmp_path / "checkpoints").exists()


def test_a_finished_run_is_not_trained_over(tmp_path):
    fit(tmp_path)
    before = content(tmp_path)
    with pytest.raises(HeadEditError, match=r"holds a finished run.*or overwrite=True, or --overwrite"):
        fit(tmp_path)
    for changed in ({"seed": 5}, {"offset_lr": 0.1}, {"rows": ROWS[:16]}, {"valid": ROWS, "seeds": 2}):
        with pytest.raises(HeadEditError, match="the run that was finished here differs in"):
            fit(tmp_path, resume=True, **changed)
    assert content(tmp_path) == before


def test_resuming_removes_the_checkpoints_that_a_killed_run_had_not_come_to_remove(tmp_path):
    fit(tmp_path)
    before, left = content(tmp_path), tmp_path / "checkpoints"
    (left / "01-ungated" / "checkpoint-3").mkdir(parents=True)
    (left / "journal").mkdir()
    (left / "headedit.json").write_text("{}")
    fit(tmp_path, resume=True)
    assert content(tmp_path) == before
    assert not left.exists()


def test_resuming_a_finished_run_returns_it_with_its_edits(tmp_path, caplog):
    for recipe in ("localise", "jola", "ungated"):
        options = {"recipe": recipe, **({"min_steps": 1} if recipe != "jola" else {})}
        folder = tmp_path / recipe
        edits = headedit.attach(tiny_model("llama"))
        options = {**QUICK, **options}
        if recipe == "jola":
            options.pop("min_steps")
        first = headedit.fit(edits, ROWS, output_dir=folder, **options)
        before = content(folder)
        fresh = headedit.attach(tiny_model("llama"))
        again = headedit.fit(fresh, ROWS, output_dir=folder, resume=True, **options)
        assert f"{folder}: this run is finished already" in caplog.text
        assert again.record == first.record
        assert again.history.rows == first.history.rows
        assert all(torch.equal(a, b) for a, b in zip(edits.snapshot(), fresh.snapshot(), strict=True))
        assert fresh.count_open() == edits.count_open()
        assert content(folder) == before


def test_a_stopped_run_is_resumed_or_kept(tmp_path, monkeypatch):
    stop(monkeypatch, tmp_path)
    assert folder_state(tmp_path) == "stopped"
    before = content(tmp_path)
    with pytest.raises(HeadEditError, match="stopped; continue it with resume=True, or --resume"):
        fit(tmp_path, batch_size=4)
    assert content(tmp_path) == before
    assert fit(tmp_path, batch_size=4, resume=True).record["steps"] == 6


def test_edits_that_belong_to_no_run_are_kept(tmp_path):
    headedit.attach(tiny_model("llama")).save_pretrained(tmp_path)
    before = content(tmp_path)
    for resume in (False, True):
        with pytest.raises(HeadEditError, match="holds edits"):
            fit(tmp_path, resume=resume)
    assert content(tmp_path) == before


def test_overwriting_removes_all_that_headedit_wrote_and_nothing_else(tmp_path, monkeypatch):
    mine = {"notes.txt": b"a", "seed-1/notes.txt": b"b", "logs/mine/log.txt": b"c", "seed-x/run.json": b"{}"}
    fit(tmp_path, valid=ROWS, seeds=3, controls=True, recipe="localise", search_epochs=1)
    for name, text in mine.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(text)
    fit(tmp_path, overwrite=True, seed=7)
    fit(tmp_path / "alone", seed=7)
    alone = content(tmp_path / "alone")
    left = {name: text for name, text in content(tmp_path).items() if not name.startswith("alone/")}
    assert left.keys() == mine.keys() | alone.keys()
    assert all(left[name] == text for name, text in mine.items())
    assert left["headedit.safetensors"] == alone["headedit.safetensors"]
    stop(monkeypatch, tmp_path / "stopped")
    (tmp_path / "stopped" / "checkpoints" / "mine.txt").write_text("mine")
    fit(tmp_path / "stopped", overwrite=True)
    assert content(tmp_path / "stopped")["checkpoints/mine.txt"] == b"mine"
    assert not (tmp_path / "stopped" / "checkpoints" / "journal").exists()


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("place", ["checkpoints/step-1/weights.bin", "checkpoints/journal/x", "run.json"])
def test_files_of_the_user_with_the_names_of_ours_are_left(place, overwrite, tmp_path):
    (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / place).write_bytes(b"precious")
    with pytest.raises(HeadEditError, match=r"Choose another output folder"):
        fit(tmp_path, overwrite=overwrite)
    assert content(tmp_path) == {place: b"precious"}


def test_resume_and_overwrite_exclude_each_other(tmp_path):
    with pytest.raises(HeadEditError, match="give one of the two"):
        fit(tmp_path / "out", resume=True, overwrite=True)
    assert not (tmp_path / "out").exists()


def test_logs_of_trackers_stay_in_the_folder_of_logs(tmp_path, monkeypatch):
    pytest.importorskip("tensorboard")
    save = StopOnSignal.on_step_end

    def write(self, args, state, control, **kwargs):  # as codecarbon does
        (Path(args.output_dir) / "emissions.csv").write_text("a,b")
        save(self, args, state, control, **kwargs)

    monkeypatch.setattr(StopOnSignal, "on_step_end", write)
    options = {"recipe": "localise", "search_epochs": 1, "arguments": {"report_to": ["tensorboard"]}}
    fit(tmp_path, **options)
    stages = sorted(path.name for path in (tmp_path / "logs").iterdir())
    assert len(stages) > 1
    for stage in stages:
        assert len(list((tmp_path / "logs" / stage).glob("events.out.tfevents*"))) == 1
        assert (tmp_path / "logs" / stage / "emissions.csv").read_text() == "a,b"
    assert not (tmp_path / "checkpoints").exists()
    fit(tmp_path, overwrite=True)
    assert not list((tmp_path / "logs").rglob("*tfevents*"))
