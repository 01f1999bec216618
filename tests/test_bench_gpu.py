"""The bench for a GPU, tried out on the CPU: parts end at their limits, are taken up again, and make one page."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import StaticCache
from typer.testing import CliRunner

from headedit import HeadEditError
from headedit.bench.cost import workloads
from headedit.bench.cost.shapes import Shape, build
from headedit.bench.gpu import LIMITS, cost, decoding, memory, page, run_parts, runner, static_cache
from headedit.bench.gpu.record import Recorder, failures, is_complete, new_record, read_record, write_record
from headedit.bench.gpu.runner import parts_of
from headedit.bench.gpu.static_cache import with_static_cache
from headedit.cli.main import app

SETTINGS = {"device": "cpu", "shapes": ["tiny"], "tests": "test_none.py"}
MEASURED = {"first": {"seconds": 0.1, "rows": []}}

PART = """
import pathlib, subprocess, sys, time

folder, record, seconds, code = sys.argv[1:]
worker = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
(pathlib.Path(folder) / "worker").write_text(str(worker.pid))
(pathlib.Path(folder) / "memory.json").write_text(record)
print("out of memory", flush=True)
time.sleep(float(seconds))
sys.exit(int(code))
"""
"""A part that starts a worker, measures an item, and goes on for some seconds."""

TESTS = """
import os, pathlib, pytest

HERE = pathlib.Path(__file__).parent

def test_that_passes():
    assert os.environ["HEADEDIT_TEST_DEVICE"] == "cpu"
    with (HERE / "calls").open("a") as file:
        file.write("passes ")

def test_that_ends_the_process():
    if not (HERE / "mended").exists():
        os._exit(7)

@pytest.mark.skip(reason="no such kernel")
def test_that_is_skipped():
    pass

def test_that_fails_at_first():
    assert (HERE / "mended").exists(), "not mended yet"
"""


def parts_that_last(monkeypatch, folder: Path, seconds: float, code: int = 0) -> None:
    record = json.dumps(new_record("memory", SETTINGS) | {"items": MEASURED})
    command = [sys.executable, "-c", PART, str(folder), record, str(seconds), str(code)]
    monkeypatch.setattr(runner, "_command", lambda part, folder, settings: command)


def has_ended(pid: int) -> bool:
    """Whether a process has ended, though nobody may have asked for its exit code."""
    for _ in range(100):
        shown = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True).stdout.strip()
        if not shown or shown.startswith("Z"):
            return True
        time.sleep(0.1)
    return False


def recorder(folder: Path, part: str) -> Recorder:
    return Recorder(folder, part, SETTINGS)


def rows_of(folder: Path, part: str) -> list[dict]:
    return [row for item in read_record(folder, part)["items"].values() for row in item["rows"]]


def finish(recorder: Recorder) -> None:
    recorder.write(state="finished", machine={"device": "cpu", "torch": "2.11", "triton": None})


@pytest.mark.skipif(os.name == "nt", reason="process groups are POSIX's")
def test_a_part_is_ended_at_its_limit_with_its_workers_and_what_it_measured_is_kept(monkeypatch, tmp_path):
    parts_that_last(monkeypatch, tmp_path, seconds=600)
    (found,) = run_parts(tmp_path, SETTINGS, {"memory": 4.0})
    assert (found["state"], found["reason"], found["seconds"]) == ("stopped", "ended at its limit of 4 s", 4.0)
    assert found["items"] == MEASURED
    assert found == read_record(tmp_path, "memory")
    assert not is_complete(found)
    assert has_ended(int((tmp_path / "worker").read_text()))


@pytest.mark.skipif(os.name == "nt", reason="process groups are POSIX's")
def test_a_part_whose_process_ends_early_is_failed_with_its_last_words_and_leaves_no_worker(monkeypatch, tmp_path):
    parts_that_last(monkeypatch, tmp_path, seconds=0, code=3)
    (found,) = run_parts(tmp_path, SETTINGS, {"memory": 60.0})
    assert found["state"] == "failed"
    assert found["reason"] == "its process ended with code 3:\nout of memory"
    assert found["items"] == MEASURED
    assert has_ended(int((tmp_path / "worker").read_text()))


def test_a_part_that_ends_well_without_finishing_its_record_is_failed(monkeypatch, tmp_path):
    monkeypatch.setattr(runner, "_command", lambda *_: [sys.executable, "-c", ""])
    (found,) = run_parts(tmp_path, SETTINGS, {"memory": 60.0})
    assert (found["state"], found["items"]) == ("failed", {})


def test_complete_parts_are_not_run_again_and_the_others_are(monkeypatch, tmp_path):
    write_record(tmp_path, new_record("tests", SETTINGS) | {"state": "finished", "items": MEASURED})
    write_record(tmp_path, new_record("cost", SETTINGS) | {"state": "stopped", "items": MEASURED})
    run, seen = [], []
    monkeypatch.setattr(runner, "_run_part", lambda folder, part, settings, limit: run.append((part, limit)))
    run_parts(tmp_path, SETTINGS, {"tests": 5.0, "cost": 6.0}, report=lambda data, skipped: seen.append(skipped))
    assert run == [("cost", 6.0)]
    assert seen == [True, False]


def test_results_of_other_settings_are_not_mixed_in(tmp_path):
    write_record(tmp_path, new_record("cost", SETTINGS))
    with pytest.raises(HeadEditError, match=r"cost\.json: it was measured with device cpu.*has device cuda"):
        run_parts(tmp_path, SETTINGS | {"device": "cuda"}, {"cost": 60.0})


def test_a_failed_item_is_named_and_the_part_goes_on_and_a_rerun_measures_only_what_is_missing(tmp_path):
    calls = []

    def rows(name, error=None):
        calls.append(name)
        if error is not None:
            raise error
        return [{"value": len(calls)}]

    first = recorder(tmp_path, "cost")
    first.measure("a", lambda: rows("a"))
    first.measure("b", lambda: rows("b", RuntimeError("CUDA out of memory")))
    first.measure("c", lambda: rows("c"))
    assert failures(first.data) == ["b"]
    assert read_record(tmp_path, "cost")["items"]["b"]["error"] == "RuntimeError: CUDA out of memory"
    finish(first)
    assert not is_complete(read_record(tmp_path, "cost"))
    calls.clear()
    second = recorder(tmp_path, "cost")
    for name in "abc":
        second.measure(name, lambda name=name: rows(name))
    finish(second)
    assert calls == ["b"]
    assert is_complete(read_record(tmp_path, "cost"))


def test_what_was_being_measured_at_the_limit_is_known_in_the_rerun(tmp_path):
    recorder(tmp_path, "tests").begin("test_that_hangs")
    again = recorder(tmp_path, "tests")
    assert again.failed == ["test_that_hangs"]
    assert again.data["items"] == {}
    assert recorder(tmp_path, "tests").failed == []


def test_the_command_names_tests_that_fail_ends_with_1_and_goes_on_with_them_alone(tmp_path):
    tests, folder = tmp_path / "test_some.py", tmp_path / "out"
    tests.write_text(TESTS)
    line = ["bench", "gpu", "--device", "cpu", "--shapes", "tiny", "--parts", "tests", "--limit", "3000"]

    def run():
        return CliRunner().invoke(app, [*line, "--tests", str(tests), "--output", str(folder)])

    result = run()
    assert result.exit_code == 1, result.output
    assert "failed: test_that_ends_the_process: the process ended with code 7" in result.output
    result = run()  # what has not been run comes first
    assert result.exit_code == 1, result.output
    assert "4 items, 2 failed" in result.output
    assert "failed: test_that_fails_at_first" in result.output
    outcomes = {name: item["outcome"] for name, item in read_record(folder, "tests")["items"].items()}
    assert outcomes == {
        "test_that_passes": "passed",
        "test_that_is_skipped": "skipped",
        "test_that_fails_at_first": "failed",
        "test_that_ends_the_process": "error",
    }
    text = (folder / "gpu.md").read_text()
    assert "1 passed, 1 skipped, 1 failed, 1 error" in text
    assert re.search(r"\| test_that_is_skipped \| skipped \|.*no such kernel", text)
    (tmp_path / "mended").touch()
    result = run()
    assert result.exit_code == 0, result.output
    assert (tmp_path / "calls").read_text() == "passes "
    assert "3 passed, 1 skipped" in (folder / "gpu.md").read_text()
    result = run()
    assert (result.exit_code, "tests: was complete" in result.output) == (0, True)


def test_the_command_is_refused_before_it_writes_where_a_gpu_or_the_tests_are_missing(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    result = CliRunner().invoke(app, ["bench", "gpu", "-o", str(tmp_path / "out")])
    assert isinstance(result.exception, HeadEditError)
    assert "There is no GPU here" in str(result.exception)
    line = ["bench", "gpu", "--device", "cpu", "--tests", str(tmp_path / "none.py"), "-o", str(tmp_path / "out")]
    assert "there is no file" in str(CliRunner().invoke(app, line).exception)
    assert not (tmp_path / "out").exists()


def test_limits_are_for_all_parts_or_for_some():
    assert parts_of(list(LIMITS), None) == LIMITS
    assert parts_of(["cost", "tests"], "60") == {"cost": 60.0, "tests": 60.0}
    assert parts_of(["cost", "memory"], "cost=120") == {"cost": 120.0, "memory": LIMITS["memory"]}
    for names, limit in ([["costs"], None], [["cost"], "costs=5"], [["cost"], "0"], [["cost"], "soon"]):
        with pytest.raises(HeadEditError, match=r"--parts|--limit"):
            parts_of(names, limit)


def test_all_parts_together_end_within_a_quarter_of_an_hour_and_each_within_ten_minutes():
    assert sum(LIMITS.values()) <= 0.9 * 15 * 60
    assert max(LIMITS.values()) <= 10 * 60


def test_the_page_is_made_of_what_the_parts_measured(monkeypatch, tmp_path):
    monkeypatch.setattr(torch, "compile", lambda model, **_: model)  # compiling takes longer than all else
    for module in (workloads, static_cache):
        monkeypatch.setattr(module, "DECODED", 2)
    for part, module in (("cost", cost), ("decoding", decoding), ("memory", memory)):
        found = recorder(tmp_path, part)
        module.measure(found, SETTINGS)
        finish(found)
        assert failures(found.data) == [], found.data["items"]
    text = page(tmp_path)
    assert text.startswith("# The GPU bench, tried out on a CPU\n\nNo figure on this page is a GPU's.")
    assert "cpu: torch 2.11. Not installed: triton." in text
    assert "| tests | not begun |" in text
    assert "`headedit bench gpu --parts cost --shapes tiny --device cpu`" in text
    rows = rows_of(tmp_path, "cost")
    assert {row["workload"] for row in rows} >= {"step", "forward", "prefill", "memory", "attach", "operators, eval"}
    assert {f"{work}, {what}" for work in ("forward", "step", "decode") for what in ("kernels", "busy")} <= {
        row["workload"] for row in rows
    }
    of_decoding = rows_of(tmp_path, "decoding")
    found = {(row["workload"], row["batch"]) for row in of_decoding}
    caches = ("", ", static cache", ", static cache, compiled")
    assert found == {(f"{work}{cache}", n) for work in ("decode", "prefill") for cache in caches for n in (1, 4)} - {
        ("prefill, static cache, compiled", 4)
    }
    for row in of_decoding:
        assert (row["at_most"], row["against"]) == (1.02 if row["method"] == "edited" else None, "bare")
        assert row["low"] <= row["high"]
    for row in rows + of_decoding:
        assert f"| {row['workload']} | {row['method']} | {row['value']:,.2f} {row['unit']} |" in text
    of_memory = rows_of(tmp_path, "memory")
    assert {(row["batch"], row["checkpointing"]) for row in of_memory} == {(4, False), (4, True), (1, False), (1, True)}
    for row in of_memory:
        assert f"{row['ratio']:.3f}" in text
        assert abs(row["ratio"] - 1) < memory.AT_MOST


def test_a_larger_model_is_compiled_with_few_layers_first_and_whole_last(monkeypatch, tmp_path):
    items = []
    monkeypatch.setattr(decoding, "COMPILED_LAYERS", 1)
    monkeypatch.setattr(Recorder, "measure", lambda recorder, name, rows: items.append(name))
    decoding.measure(recorder(tmp_path, "decoding"), SETTINGS)
    compiled = [name for name in items if name.endswith("compiled")]
    assert [name.partition(", ")[0] for name in compiled] == ["tiny"] * 6
    assert ["1 layers" in name for name in compiled] == [True] * 3 + [False] * 3
    assert items[0] == "tiny, decode, 1 x 8"


@pytest.mark.usefixtures("fresh_compiler")
def test_the_compiled_edited_model_does_not_run_the_graph_of_the_bare_one(monkeypatch):
    compile_as_asked = torch.compile
    monkeypatch.setattr(torch, "compile", lambda call, mode: compile_as_asked(call, backend="eager"))
    torch._dynamo.utils.counters.clear()
    with_static_cache(build(Shape(layers=1, hidden=32, heads=2)), "decode", 1, 4, rounds=1, compiled=True)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2


@pytest.mark.parametrize("work", ["prefill", "decode"])
def test_what_is_timed_with_a_static_cache_begins_at_the_same_token_each_time(work, monkeypatch):
    lengths = []
    at_site = nn.Module.__call__

    def seen(module, *args, **inputs):
        if isinstance(inputs.get("past_key_values"), StaticCache) and hasattr(module, "lm_head"):
            lengths.append((int(inputs["past_key_values"].get_seq_length()), inputs["input_ids"].shape[1]))
        return at_site(module, *args, **inputs)

    monkeypatch.setattr(nn.Module, "__call__", seen)
    monkeypatch.setattr(static_cache, "DECODED", 2)
    with_static_cache(build(Shape(layers=1, hidden=32, heads=2)), work, 1, 4, rounds=2, compiled=False)
    timed = lengths[2:]  # after the caches were filled
    assert timed == ([(0, 4)] * 10 if work == "prefill" else [(4, 1), (5, 1)] * 10)


def test_the_page_of_a_gpu_says_which_and_what_failed_or_was_ended(tmp_path):
    settings = SETTINGS | {"device": "cuda"}
    found = Recorder(tmp_path, "cost", settings)
    found.measure("8B, step, 4 x 512", lambda: 1 / 0)
    found.write(state="stopped", reason="ended at its limit of 100 s", machine={"device": "GPU X", "memory": 80 << 30})
    text = page(tmp_path)
    assert text.startswith("# Measured on a GPU\n\nGPU X, 80 GiB")
    assert "| cost | stopped | `headedit bench gpu --parts cost --shapes tiny` | 1 | 1 |" in text
    assert "cost: ended at its limit of 100 s" in text
    assert "| 8B, step, 4 x 512 | ZeroDivisionError: division by zero |" in text
