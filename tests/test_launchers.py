"""``torchrun`` and ``accelerate launch`` of two processes on CPUs, as a user types them, train what one does."""

import json
import os
import signal
import time

import launched
import psutil
import pytest
import torch
from run_inputs import save_model, save_records
from transformers import AutoModelForCausalLM, TrainingArguments

import headedit
from headedit import HeadEditError
from headedit.data.batches import PadRight
from headedit.io import lock
from headedit.training.processes import check_together, device_arguments, started_processes

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without distributed")

EPOCHS = 4
OPTIONS = (
    "-m headedit train --model base --data alpaca.json --recipe ungated --valid-share 0 "
    f"--set epochs={EPOCHS} --set min_steps=1 --set batch_size=4 "
    "--set training.save_strategy=steps --set training.save_steps=1"
)
CONFIG = """
compute_environment: LOCAL_MACHINE
distributed_type: {kind}
num_machines: 1
num_processes: 2
machine_rank: 0
mixed_precision: 'no'
"""
CONFIGS = {
    "ddp": CONFIG.format(kind="MULTI_GPU"),
    "fsdp2": CONFIG.format(kind="FSDP")
    + "fsdp_config: {fsdp_version: 2, fsdp_auto_wrap_policy: TRANSFORMER_BASED_WRAP}\n",
}
"""Files as ``accelerate config`` writes them; on CPUs accelerate replicates the model where it is to shard it."""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with data, a base model in float64, where the order of a sum hardly counts, and a run of one process."""
    folder = tmp_path_factory.mktemp("launched")
    save_model(folder / "base")
    AutoModelForCausalLM.from_pretrained(folder / "base").double().save_pretrained(folder / "base")
    save_records(folder, "alpaca", 24)
    config = {
        "model": {"name": str(folder / "base")},
        "data": {"train": str(folder / "alpaca.json")},
        "recipe": {"name": "ungated"},
        "output": str(folder / "one"),
    }
    headedit.train(config, progress=False, epochs=EPOCHS, min_steps=1, batch_size=8)
    return folder


def check_like_one(place, name):
    steps = [json.loads((place / run / "run.json").read_text())["steps"] for run in ("one", name)]
    assert steps[0] == steps[1] == 3 * EPOCHS
    assert launched.changed(place / "one") > 0.01
    assert launched.difference(place / "one", place / name) < 1e-6


def test_torchrun_without_flags_trains_on_cpus_what_one_process_does(place):
    code, text = launched.run(f"{launched.TORCHRUN} {OPTIONS} --output torchrun", place)
    assert code == 0, text[-3000:]
    assert text.count("wrote torchrun") == 1
    check_like_one(place, "torchrun")


def wait_for_step(process, output, step):
    """Waits until a run has saved a step, and says how far it is."""
    end = time.monotonic() + 300
    while time.monotonic() < end and process.poll() is None:
        saved = [int(f.parent.name.rpartition("-")[2]) for f in output.glob("checkpoints/*/*/headedit_checkpoint.json")]
        if max(saved, default=0) >= step:
            return
        time.sleep(0.01)
    raise AssertionError(f"step {step} was not saved: {process.communicate()[0][-3000:]}")


def test_accelerate_launch_resumes_after_ctrl_c_and_after_one_process_is_killed_by_ddp_and_by_fsdp2(place):
    """The run that it ends with is that of one process without a break."""
    for name, kind in CONFIGS.items():
        (place / f"{name}.yaml").write_text(kind)
    ddp, fsdp = (launched.ACCELERATE.replace("CONFIG", f"{name}.yaml") for name in CONFIGS)
    process = launched.start(f"{ddp} {OPTIONS} --output broken", place)
    wait_for_step(process, place / "broken", 2)
    process.send_signal(signal.SIGINT)
    text, _ = process.communicate(timeout=300)
    assert "is saved; continue from there" in text
    assert process.returncode != 0
    process = launched.start(f"{ddp} {OPTIONS} --output broken --resume", place)
    wait_for_step(process, place / "broken", 6)
    (second,) = (p for p in psutil.Process(process.pid).children() if p.environ().get("LOCAL_RANK") == "1")
    second.kill()
    process.communicate(timeout=300)
    assert process.returncode != 0
    assert not (place / "broken" / "headedit.safetensors").exists()
    code, text = launched.run(f"{fsdp} {OPTIONS} --output broken --resume", place)
    assert code == 0, text[-3000:]
    check_like_one(place, "broken")


def test_processes_that_do_not_know_of_each_other_are_refused_with_the_two_settings(llama, tmp_path, monkeypatch):
    for name, value in {"WORLD_SIZE": "2", "RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    rows = [{"input_ids": [3, 4, 5], "labels": [-100, 4, 5]}] * 4
    edits = headedit.attach(llama)
    with pytest.raises(HeadEditError, match=r"2 processes .* use_cpu=True and ddp_backend='gloo'.* --device cpu"):
        headedit.fit(
            edits, rows, output_dir=tmp_path / "out", recipe="ungated", arguments={"use_cpu": False}, batch_size=2
        )
    assert not (tmp_path / "out").exists()
    arguments = TrainingArguments(str(tmp_path), report_to=[])
    trainer = headedit.HeadEditTrainer(edits, args=arguments, train_dataset=rows, data_collator=PadRight())
    with pytest.raises(HeadEditError, match="2 processes were started"):
        trainer.train()


@pytest.mark.parametrize(
    ("environment", "count"),
    [
        ({"WORLD_SIZE": "2"}, 1),
        ({"WORLD_SIZE": "2", "RANK": "0"}, 2),
        ({"WORLD_SIZE": "4", "LOCAL_RANK": "0"}, 4),
        ({"OMPI_COMM_WORLD_SIZE": "3"}, 3),
        ({"WORLD_SIZE": "1", "RANK": "0"}, 1),
    ],
)
def test_launchers_say_in_the_environment_how_many_processes_they_started(environment, count, monkeypatch):
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert started_processes() == count
    expected = {"use_cpu": True, "ddp_backend": "gloo"} if count > 1 else {"use_cpu": True}
    assert device_arguments({}, "cpu") == expected
    assert device_arguments({"use_cpu": False}, "cpu") == {"use_cpu": False}
    if count > 1:
        with pytest.raises(HeadEditError, match=f"{count} processes"):
            check_together(1)
    check_together(count)


def test_a_second_training_into_a_folder_is_refused_while_the_first_runs(llama, tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "_PATIENCE", 0.1)
    rows = [{"input_ids": [3, 4, 5], "labels": [-100, 4, 5]}] * 4
    options = {"output_dir": tmp_path / "out", "recipe": "ungated", "epochs": 1, "min_steps": 1, "batch_size": 2}
    edits = headedit.attach(llama)
    inside, go = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        with lock.writing_alone(tmp_path / "out", "trains"):
            os.write(inside[1], b"x")
            os.read(go[0], 1)
        os._exit(0)
    os.read(inside[0], 1)
    with pytest.raises(HeadEditError, match="another process trains into this folder"):
        headedit.fit(edits, rows, progress=False, **options)
    assert os.listdir(tmp_path / "out") == []
    os.write(go[1], b"x")
    os.waitpid(child, 0)
    headedit.fit(edits, rows, progress=False, **options)
    headedit.fit(edits, rows, progress=False, overwrite=True, **options)
