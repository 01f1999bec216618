"""``headedit plan`` for devices that share each layer or each weight, against what two processes really hold."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from processes_planned import SETUP, SIZES, TYPES
from tiny import tiny_model
from transformers import LlamaConfig

from headedit import EditConfig, HeadEditError
from headedit.cli.main import main
from headedit.training.memory_plan import Planner, Setup, estimate
from headedit.training.memory_plan.planner import UNCERTAINTY

L8 = {
    "vocab_size": 128_256,
    "hidden_size": 4096,
    "intermediate_size": 14_336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
}


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """What each of two processes holds, by how they share a model and its type."""
    if not torch.distributed.is_available():
        pytest.skip("torch without distributed")
    folder, script = tmp_path_factory.mktemp("measured"), Path(__file__).with_name("processes_planned.py")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, str(folder)], capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = (json.loads((folder / f"{rank}.json").read_text()) for rank in (0, 1))
    assert {key: value["base"] for key, value in first.items()} == {key: v["base"] for key, v in second.items()}
    return first


@pytest.mark.parametrize("model_type", TYPES)
@pytest.mark.parametrize("split", ["tensor_parallel", "fsdp"])
def test_the_plan_of_a_device_is_what_one_of_two_processes_holds(split, model_type, measured):
    found = measured[f"{split} {model_type}"]
    plan = estimate(tiny_model(model_type, **SIZES).config, replace(SETUP, split=split))
    share = plan.shares[0]
    assert plan.shares == (share, share)
    assert share.base == found["base"]
    assert share.saved == pytest.approx(found["saved"], rel=0.01)
    assert share.computing + share.gathered == pytest.approx(found["step"], rel=UNCERTAINTY)
    if split == "tensor_parallel":
        assert share.computing == pytest.approx(found["step"], rel=0.1)
        assert share.gathered == 0
    else:
        assert share.gathered > 0


def test_tensor_parallel_devices_share_layers_and_keep_whole_edits_and_logits():
    planner = Planner(LlamaConfig(**L8))
    setup = Setup(batch_size=2, tokens=512)
    one, four = planner.plan(setup), planner.plan(replace(setup, devices=4, split="tensor_parallel"))
    assert {share.trained for share in (*one.shares, *four.shares)} == {4 * one.edits}
    assert (four.weights, four.parameters) == (one.weights, one.parameters)
    norms = (2 * 32 + 1) * 4096 * 2
    assert four.shares[0].base == (one.weights - norms) // 4 + norms + one.buffers
    assert four.logits == 2 * 512 * 128_256 * 2
    assert four.saved < 0.6 * one.saved + four.logits * 2


def test_tied_weights_are_shared_once():
    config = LlamaConfig(**{**L8, "num_hidden_layers": 2}, tie_word_embeddings=True)
    tied, loose = (
        estimate(c, Setup(batch_size=1, tokens=64, devices=2, split="tensor_parallel")).shares[0].base
        for c in (config, LlamaConfig(**{**L8, "num_hidden_layers": 2}))
    )
    assert loose - tied == 128_256 * 4096 * 2 // 2


@pytest.mark.parametrize(
    ("model_type", "devices", "message"),
    [
        ("llama", 4, "4 devices cannot share the 2 key-value heads of LlamaForCausalLM evenly"),
        ("gpt_neox", 3, "3 devices cannot share the 4 heads of GPTNeoXForCausalLM evenly"),
        ("gpt2", 2, "transformers has no tensor parallel plan for GPT2LMHeadModel. Share it by fsdp or device_map"),
    ],
)
def test_a_model_that_cannot_be_shared_by_layers_is_refused(model_type, devices, message):
    setup = Setup(tokens=16, devices=devices, split="tensor_parallel", dtype="float32", device="cpu")
    with pytest.raises(HeadEditError, match=message):
        estimate(tiny_model(model_type).config, setup, edits=EditConfig())


def test_the_command_shows_devices_with_equal_shares_on_one_line(tmp_path, capsys):
    (tmp_path / "config.json").write_text(json.dumps(LlamaConfig(**L8, dtype="bfloat16").to_dict()))
    words = ["plan", "--model", str(tmp_path), "--max-length", "512", "--batch-size", "2", "--memory", "24GiB"]
    printed = {}
    for split in ("tensor_parallel", "fsdp"):
        with pytest.raises(SystemExit, match="0"):
            main([*words, "--devices", "4", "--split", split])
        printed[split] = " ".join(capsys.readouterr().out.replace("│", " ").split())
        assert f"4 devices by {split}" in printed[split]
        assert "0 to 3" in printed[split]
        assert " fits: " in printed[split]
    assert "weights that each device keeps 3.7 GiB" in printed["fsdp"]
    assert "weights that it gathers meanwhile 2.8 GiB" in printed["fsdp"]
    assert "weights that each device keeps 3.7 GiB" in printed["tensor_parallel"]
    assert "gathers" not in printed["tensor_parallel"]
    assert "logits made at once, within these 250.5 MiB" in printed["tensor_parallel"]
