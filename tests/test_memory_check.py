"""What is free on a device, and that a run which needs more ends before a weight is loaded."""

import re

import pytest
import torch
from run_inputs import save_model, save_records

import headedit
from headedit import HeadEditError
from headedit.cli.main import main
from headedit.training.config import ModelConfig, read_run
from headedit.training.memory_plan import check
from headedit.training.memory_plan.check import check_memory
from headedit.training.memory_plan.free import container_memory, free_memory
from headedit.training.memory_plan.memory import GIB, PROCESS


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The config of a tiny run, of which the limit on examples is far above their length."""
    folder = tmp_path_factory.mktemp("run")
    options = {
        "model.name": save_model(folder / "model"),
        "model.device": "cpu",
        "data.train": save_records(folder, "alpaca", 16),
        "data.max_length": 1_000_000,
        "recipe.name": "ungated",
        "recipe.epochs": 1,
        "output": str(folder / "out"),
    }
    return read_run(None, options)


def limited(monkeypatch, **bytes_of):
    monkeypatch.setattr(check, "free_memory", lambda device, name=None, all_devices=False: bytes_of[device])


def test_a_run_that_does_not_fit_is_refused_before_a_weight_is_loaded(run, monkeypatch, tmp_path, capsys):
    limited(monkeypatch, cpu=100_000)
    monkeypatch.setattr(ModelConfig, "load", lambda self: pytest.fail("loaded"))
    file = run.save(tmp_path)
    with pytest.raises(SystemExit, match="2"):
        main(["train", str(file), "--output", str(tmp_path / "out")])
    assert re.search(
        r"The run needs \S+ MiB of memory \(.* KiB for the weights, .*for a step of 8 × \d+ tokens\), and 97\.7 KiB "
        r"are free\. 'headedit plan CONFIG --fit' .*--no-memory-check",
        capsys.readouterr().err,
    )
    assert not (tmp_path / "out").exists()


def test_a_run_is_checked_at_the_length_of_its_longest_example_and_can_be_started_all_the_same(run, monkeypatch):
    lengths = []
    monkeypatch.setattr("headedit.training.train.check_memory", lambda config, tokens: lengths.append(tokens))
    headedit.train(run, progress=False)
    assert 2 < lengths[0] < 200
    monkeypatch.setattr("headedit.training.train.check_memory", lambda *given: pytest.fail("checked"))
    headedit.train(run, progress=False, overwrite=True, memory_check=False)


def test_a_sweep_refuses_runs_that_do_not_fit_before_a_weight_is_loaded(run, monkeypatch, tmp_path, capsys):
    limited(monkeypatch, cpu=100_000)
    monkeypatch.setattr(ModelConfig, "load", lambda self: pytest.fail("loaded"))
    run.save(tmp_path)
    (tmp_path / "sweep.yaml").write_text(f"base: run.yaml\nseeds: [0, 1]\noutput: {tmp_path}/out\n")
    with pytest.raises(SystemExit, match="2"):
        main(["sweep", str(tmp_path / "sweep.yaml")])
    assert "2 of 2 runs failed" in (said := capsys.readouterr().err)
    assert "The run needs" in said


def test_a_run_that_may_not_fit_is_started_with_a_warning(run, monkeypatch, caplog):
    plan = check._plan(run, 60)
    assert plan.total - PROCESS["cpu"] < plan.careful - PROCESS["cpu"]
    limited(monkeypatch, cpu=plan.careful - PROCESS["cpu"])
    check_memory(run, 60)
    assert caplog.text == ""
    limited(monkeypatch, cpu=plan.total - PROCESS["cpu"])
    check_memory(run, 60)
    assert "it may not fit" in caplog.text
    limited(monkeypatch, cpu=plan.total - PROCESS["cpu"] - 1)
    with pytest.raises(HeadEditError, match="The run needs"):
        check_memory(run, 60)


def test_weights_that_pass_through_the_machine_must_fit_there_too(run, monkeypatch):
    on_gpu = read_run(run, {"model.device": "cuda"})
    limited(monkeypatch, cuda=GIB, cpu=1000)
    with pytest.raises(HeadEditError, match=r"on their way to the GPU.*device_map: auto"):
        check_memory(on_gpu, 60)
    limited(monkeypatch, cuda=1000, cpu=GIB)
    with pytest.raises(HeadEditError, match="of GPU memory"):
        check_memory(on_gpu, 60)
    limited(monkeypatch, cuda=GIB, cpu=GIB)
    check_memory(on_gpu, 60)


def test_a_run_whose_need_is_unknown_is_started(run, monkeypatch):
    limited(monkeypatch, cpu=0)
    monkeypatch.setattr(check, "Planner", lambda *given, **named: 1 / 0)
    check_memory(run, 60)
    monkeypatch.undo()
    limited(monkeypatch)
    own = read_run(run, {"model.device": None, "model.device_map": {"": "cpu"}})
    check_memory(own, 60)


def test_a_device_that_is_not_there_is_left_to_the_loading_of_the_model(run):
    check_memory(read_run(run, {"model.device": "cuda:99"}), 60)


def test_the_check_draws_no_random_number(run):
    before = torch.get_rng_state()
    check_memory(run, 60)
    assert torch.equal(torch.get_rng_state(), before)


CGROUPS = {  # files, limit and what is left
    "none": ({}, None),
    "no limit": ({"memory.max": "max\n", "memory.current": "5", "memory.stat": "x 1\n"}, None),
    "version 2": (
        {
            "memory.max": "1000\n",
            "memory.current": "700\n",
            "memory.stat": "anon 500\ninactive_file 100\nactive_file 50\n",
        },
        (1000, 450),
    ),
    "version 1": (
        {
            "memory/memory.limit_in_bytes": "1000",
            "memory/memory.usage_in_bytes": "1200",
            "memory/memory.stat": "inactive_file 7\ntotal_inactive_file 100\ntotal_active_file 0\n",
        },
        (1000, 0),
    ),
    "version 1 without a limit": (
        {
            "memory/memory.limit_in_bytes": "9223372036854771712",
            "memory/memory.usage_in_bytes": "1200",
            "memory/memory.stat": "total_inactive_file 100\n",
        },
        None,
    ),
}


@pytest.mark.parametrize("kind", CGROUPS)
def test_the_limit_of_a_container_is_read(kind, tmp_path):
    files, expected = CGROUPS[kind]
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert container_memory(tmp_path) == expected


def test_processes_that_start_together_share_what_is_free(monkeypatch):
    monkeypatch.setattr("headedit.training.memory_plan.free.container_memory", lambda: (4000, 1000))
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert free_memory("cpu") == 1000
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert free_memory("cpu") == 500


def test_what_a_process_holds_of_a_gpu_without_using_it_is_free(monkeypatch):
    free = {0: 70, 1: 50}
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    for name, function in {
        "mem_get_info": lambda i: (free[i], 100),
        "memory_reserved": lambda i: 20,
        "memory_allocated": lambda i: 5,
        "device_count": lambda: 2,
        "current_device": lambda: 0,
    }.items():
        monkeypatch.setattr(torch.cuda, name, function)
    assert [free_memory("cuda", name) for name in (None, "cuda", "cuda:1")] == [85, 85, 65]
    assert free_memory("cuda", all_devices=True) == 65
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert free_memory("cuda") == 65
