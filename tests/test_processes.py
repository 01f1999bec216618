"""Two processes learn the same edits as one, with DDP and with FSDP2."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from processes import train
from safetensors.torch import load_file

SCRIPT = Path(__file__).with_name("processes.py")
CLOSE = 1e-6
"""The largest difference of a parameter; two processes add up gradients in another order."""


def launch(*arguments):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(SCRIPT)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, *map(str, arguments)], capture_output=True, text=True, env=environment, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without distributed")
@pytest.mark.parametrize(("recipe", "how"), [("localise", []), ("jola", ["shard"])], ids=["DDP", "FSDP2"])
def test_two_processes_learn_the_same_edits_as_one(recipe, how, tmp_path):
    train(tmp_path / "one", 8, recipe)
    launch(tmp_path / "two", 4, recipe, *how)
    one, two = (load_file(tmp_path / name / "headedit.safetensors") for name in ("one", "two"))
    assert one.keys() == two.keys()
    assert max(float(t.abs().max()) for t in one.values()) > 0.1
    assert all(torch.allclose(one[name], two[name], atol=CLOSE) for name in one)
    steps = [json.loads((tmp_path / name / "run.json").read_text())["steps"] for name in ("one", "two")]
    assert steps[0] == steps[1]
