"""A comparison as a part of the bench for a GPU: cells side by side, kept when the part is ended, and continued."""

import json
import random
from concurrent.futures import Future

import pytest
from run_inputs import WORDS, save_model
from typer.testing import CliRunner

from headedit import CompareConfig, HeadEditError
from headedit.bench.compare.cells import CELL_FILE
from headedit.bench.gpu import comparison, run_parts, runner
from headedit.bench.gpu.comparison import in_order
from headedit.bench.gpu.record import Recorder, failures, new_record, read_record, write_record
from headedit.cli.main import app

TASK = {
    "prompt": "Word: {{ text }} Kind (animal, thing):",
    "template": "plain",
    "answer": "label",
    "options": ["animal", "thing"],
    "scoring": "loglikelihood",
    "delimiter": " ",
}


@pytest.fixture
def file(tmp_path):
    """A comparison of two methods on one task, with two seeds, on a tiny model."""
    save_model(tmp_path / "model", hidden_size=32, num_hidden_layers=1)
    draw = random.Random(0)
    (tmp_path / "words").mkdir()
    for split, count in (("train", 12), ("test", 8)):
        words = draw.choices(WORDS, k=count)
        rows = [{"text": text, "label": "animal" if text in ("cat", "dog") else "thing"} for text in words]
        (tmp_path / "words" / f"{split}.json").write_text(json.dumps(rows))
    (tmp_path / "words.yaml").write_text(json.dumps(TASK))
    return write(tmp_path, seeds=[0, 1])


def write(folder, **changes):
    content = {
        "model": {"name": str(folder / "model"), "dtype": "float32", "device": "cpu"},
        "tasks": {"words": {"task": "words.yaml", "data": "words"}},
        "output": str(folder / "cells"),
        "methods": ["zero-shot", "no gate"],
        "sizes": [8],
        "epochs": 1,
        "batch_size": 4,
        "test_examples": 6,
        **changes,
    }
    file = folder / "compare.yaml"
    file.write_text(json.dumps(content))
    return file


def config(file):
    return CompareConfig.read(file)


def bench(file, *options):
    line = ["bench", "gpu", "--device", "cpu", "--compare", str(file), "-o", str(file.parent / "gpu"), *options]
    return CliRunner().invoke(app, line)


def written(folder):
    return {path.parent: path.stat().st_mtime_ns for path in folder.rglob(CELL_FILE)}


class InThisProcess:
    """An executor without processes."""

    def __init__(self, jobs, context, initializer):
        assert jobs <= 2

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def submit(self, work, cell):
        future = Future()
        try:
            future.set_result(work(cell))
        except RuntimeError as error:
            future.set_exception(error)
        return future


@pytest.fixture
def in_this_process(monkeypatch):
    monkeypatch.setattr(comparison, "ProcessPoolExecutor", InThisProcess)


def measure(file):
    settings = {"device": "cpu", "comparison": str(file), "jobs": 2}
    recorder = Recorder(file.parent / "gpu", "compare", settings)
    comparison.measure(recorder, settings)
    return recorder.data


def test_the_command_runs_cells_in_processes_of_their_own_and_shows_their_tables(file):
    folder = write(file.parent, seeds=[0]).parent
    result = bench(file, "--parts", "compare", "--jobs", "2", "--limit", "3000")
    assert result.exit_code == 0, result.output
    record = read_record(folder / "gpu", "compare")
    assert (record["state"], len(record["items"])) == ("finished", 2)
    page = (folder / "gpu" / "gpu.md").read_text()
    assert "### words, 8 examples: accuracy on 6 test examples, 1 seed" in page
    assert f"`headedit bench gpu --parts compare --compare {file} --jobs 2 --device cpu`" in page
    assert "compare: was complete" in bench(file, "--parts", "compare", "--jobs", "3").output


@pytest.mark.usefixtures("in_this_process")
def test_finished_cells_are_kept_and_a_further_seed_is_run_alone(file):
    folder = write(file.parent, seeds=[1]).parent
    (folder / "gpu").mkdir()
    measure(file)
    before = written(folder / "cells")
    assert len(before) == 2
    write(folder, seeds=[1, 0])
    data = measure(file)
    after = written(folder / "cells")
    assert len(after) == 4
    assert before.items() <= after.items()
    scores = {name: item["rows"][0]["score"] for name, item in data["items"].items()}
    assert scores == {cell.name: cell.row()["score"] for cell in in_order(config(file))}
    assert data == read_record(folder / "gpu", "compare")


def test_a_complete_part_is_taken_up_again_where_the_comparison_has_further_cells(file, monkeypatch, tmp_path):
    ran = []
    monkeypatch.setattr(runner, "_run_part", lambda folder, part, settings, limit: ran.append(settings["cells"]))
    settings = {"device": "cpu", "shapes": [], "tests": ""}
    for cells, jobs in (("a", 1), ("a", 2), ("b", 2)):
        own = {"compare": {"comparison": "compare.yaml", "cells": cells, "jobs": jobs}}
        run_parts(tmp_path, settings, {"compare": 1.0}, own=own)
        finished = new_record("compare", settings | own["compare"]) | {"state": "finished"}
        write_record(tmp_path, finished)
    assert ran == ["a", "b"]


def test_seeds_come_before_sizes_and_these_before_methods_in_the_order_of_the_file(file):
    write(file.parent, seeds=[1, 0], sizes=[12, 8], methods=["no gate", "zero-shot"])
    cells = [(cell.seed, cell.size, cell.method) for cell in in_order(config(file))]
    assert cells == [(s, n, m) for s in (1, 0) for n in (12, 8) for m in ("no gate", "zero-shot")]


@pytest.mark.usefixtures("in_this_process")
def test_a_cell_that_fails_is_named_and_the_others_are_finished(file, monkeypatch):
    def run(cell):
        if cell.method == "no gate" and cell.seed == 0:
            raise RuntimeError("CUDA out of memory")
        row = {"task": cell.task, "size": cell.size, "seed": cell.seed, "method": cell.method}
        return 1.0, row | {"error": "needs the package pyvene"}

    monkeypatch.setattr(comparison, "_run", run)
    (file.parent / "gpu").mkdir()
    data = measure(file)
    assert failures(data) == ["words, 8 examples, seed 0, no gate"]
    assert data["items"]["words, 8 examples, seed 0, no gate"]["error"] == "RuntimeError: CUDA out of memory"
    left_out = data["items"]["words, 8 examples, seed 1, no gate"]
    assert (left_out["outcome"], left_out["message"]) == ("skipped", "needs the package pyvene")


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({"methods": ["lor"]}, [], "lor"),
        ({"tasks": {"words": {"task": "word.yaml"}}}, [], "word.yaml"),
        ({}, ["--parts", "compares"], "--parts: found 'compares'"),
    ],
)
def test_a_mistake_in_the_comparison_is_reported_before_any_part_is_run(file, changes, options, message):
    write(file.parent, **changes)
    result = bench(file, *options)
    assert isinstance(result.exception, HeadEditError)
    assert message in str(result.exception)
    assert not (file.parent / "gpu").exists()


def test_the_part_compare_needs_a_file(tmp_path):
    line = ["bench", "gpu", "--device", "cpu", "--parts", "compare", "-o", str(tmp_path / "gpu")]
    assert "--compare FILE" in str(CliRunner().invoke(app, line).exception)
