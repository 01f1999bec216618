"""Two processes learn the same edits as one, by DDP, FSDP2 and ZeRO-2, and other weights by DDP."""

import json
import os
import subprocess
import sys
from pathlib import Path

import processes_deepspeed as zero
import processes_other_weights as others
import pytest
import torch
from processes import ROWS, train
from safetensors.torch import load_file
from transformers import TrainingArguments

import headedit
from headedit.data.batches import PadRight
from headedit.runs.files import OTHER_WEIGHTS_FILE

CLOSE = 1e-6
"""The largest difference of a parameter; two processes add up gradients in another order."""


pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without distributed")


def launch(script, *arguments):
    file = Path(__file__).with_name(script)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(file)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, *map(str, arguments)], capture_output=True, text=True, env=environment, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize(
    ("recipe", "how"), [("localise", []), ("jola", ["2"]), ("jola", ["1"])], ids=["DDP", "FSDP2", "FSDP1"]
)
def test_two_processes_learn_the_same_edits_as_one(recipe, how, tmp_path):
    train(tmp_path / "one", 8, recipe)
    launch("processes.py", tmp_path / "two", 4, recipe, *how)
    one, two = (load_file(tmp_path / name / "headedit.safetensors") for name in ("one", "two"))
    assert one.keys() == two.keys()
    assert max(float(t.abs().max()) for t in one.values()) > 0.1
    assert all(torch.allclose(one[name], two[name], atol=CLOSE) for name in one)
    steps = [json.loads((tmp_path / name / "run.json").read_text())["steps"] for name in ("one", "two")]
    assert steps[0] == steps[1]


def test_two_processes_save_other_weights_once_and_resume_with_them(tmp_path):
    one, _ = others.train(tmp_path / "one", 8)
    launch("processes_other_weights.py", tmp_path / "two")
    for name in ("headedit.safetensors", OTHER_WEIGHTS_FILE):
        first, second, resumed = (load_file(tmp_path / run / name) for run in ("one", "two", "two-resumed"))
        assert first.keys() == second.keys() == resumed.keys()
        assert all(torch.allclose(first[key], second[key], atol=1e-4) for key in first)
        assert all(torch.equal(second[key], resumed[key]) for key in second)
    assert load_file(tmp_path / "two" / OTHER_WEIGHTS_FILE).keys() == {others.NORM}
    assert not torch.equal(load_file(tmp_path / "two" / OTHER_WEIGHTS_FILE)[others.NORM], torch.ones(32))
    assert max(float(p.detach().abs().max()) for p in one.vector_parameters()) > 0.01


def test_other_weights_that_would_be_sharded_are_refused_by_name(tmp_path):
    launch("processes_other_weights.py", tmp_path / "sharded", "shard")


def test_zero_2_of_deepspeed_learns_the_same_edits_as_one_process(tmp_path):
    pytest.importorskip("deepspeed")
    zero.train(tmp_path / "one", 8, use_cpu=True)
    launch("processes_deepspeed.py", tmp_path / "two")
    one, two = (load_file(tmp_path / name / "headedit.safetensors") for name in ("one", "two"))
    assert max(float(t.abs().max()) for t in one.values()) > 1e-3
    assert all(
        torch.allclose(one[name], two[name], rtol=1e-6, atol=1e-6 * float(one[name].abs().max())) for name in one
    )


def test_zero_3_and_recipes_by_deepspeed_or_fsdp1_are_refused_by_name(llama, tmp_path, monkeypatch):
    edits = headedit.attach(llama)
    arguments = TrainingArguments(str(tmp_path), report_to=[], use_cpu=True)
    trainer = headedit.HeadEditTrainer(edits, args=arguments, train_dataset=ROWS[:4], data_collator=PadRight())
    trainer.is_deepspeed_enabled = True
    state = type("State", (), {"deepspeed_plugin": type("Plugin", (), {"zero_stage": 3})})
    monkeypatch.setattr(trainer, "accelerator", type("Accelerator", (), {"state": state}))
    with pytest.raises(headedit.HeadEditError, match=r"ZeRO-3 .* the edits too"):
        trainer.train()
    with pytest.raises(headedit.HeadEditError, match="deepspeed: recipes read the gradient"):
        headedit.fit(edits, ROWS[:4], output_dir=tmp_path / "fit", arguments={"deepspeed": {"a": 1}})
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    for given in ({"fsdp": True, "fsdp_config": {"version": 1}}, {}):
        with pytest.raises(headedit.HeadEditError, match="FSDP1 has the weights only while its wrapper runs"):
            headedit.fit(edits, ROWS[:4], output_dir=tmp_path / "fit", arguments=given)
    assert not (tmp_path / "fit").exists()
