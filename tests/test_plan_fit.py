"""``headedit plan --fit``: the changes with which a run fits a device and learns the same."""

import json

import pytest
import torch
import yaml
from run_inputs import save_model, save_records
from transformers import Olmo2Config

import headedit
from headedit import HeadEditError
from headedit.cli.main import main
from headedit.training.config import read_run
from headedit.training.memory_plan import Plan, Planner, Setup
from headedit.training.memory_plan.fit import find_fit
from headedit.training.memory_plan.from_config import setup_of
from headedit.training.memory_plan.memory import GIB
from headedit.training.memory_plan.shares import Share

OLMO2_13B = {
    "vocab_size": 100_352,
    "hidden_size": 5120,
    "intermediate_size": 13_824,
    "num_hidden_layers": 40,
    "num_attention_heads": 40,
    "num_key_value_heads": 40,
    "max_position_embeddings": 16_384,
}


def told(capsys, *arguments, code="0"):
    """What the command prints, on one line."""
    with pytest.raises(SystemExit, match=code):
        main(["plan", *map(str, arguments)])
    found = capsys.readouterr()
    return " ".join((found.out + found.err).replace("│", " ").split())


def large(folder, layers):
    """The folder of a model as wide as OLMo-2 13B, of which there is the config alone."""
    config = Olmo2Config(**{**OLMO2_13B, "num_hidden_layers": layers}, dtype="bfloat16")
    (folder / "config.json").write_text(json.dumps(config.to_dict()))
    return str(folder)


def test_the_published_13b_run_fits_one_card_of_80_gb(tmp_path):
    run = read_run("olmo2-13b-sharegpt", {"model.name": large(tmp_path, 40)})
    assert run.recipe["batch_size"] * run.training["gradient_accumulation_steps"] == 16
    config = run.model.load_config()
    plan = Planner(config, run.edits).plan(setup_of(run, config, for_gpu=True, devices=1))
    assert plan.weights == 2 * 13_716_198_400
    assert (plan.setup.tokens, plan.setup.checkpointing, plan.setup.in_validation) == (30_000, True, 4)
    assert plan.careful < 76 * GIB
    assert plan.verdict(80 * 10**9) == "fits"


def test_the_published_batches_are_made_smaller_and_the_config_is_written(capsys, tmp_path):
    file, model = tmp_path / "fit.yaml", large(tmp_path, 1)
    published = ["--set", "recipe.batch_size=4", "--set", "training.gradient_accumulation_steps=4"]
    options = ["--model", model, "--memory", "30GiB", "--devices", 1, *published, "--output", file]
    printed = told(capsys, "olmo2-13b-sharegpt", *options, "--fit")
    assert "does not fit: " in printed
    assert "change: batch size 1 with accumulation 16, for 4 with 4: 16 examples per step as before" in printed
    assert read_run(file) == read_run("olmo2-13b-sharegpt", {"model.name": model})
    assert file.read_text().startswith("# olmo2-13b-sharegpt, changed by headedit plan --fit for 30.0 GiB of memory:\n")
    assert "exists already" in told(capsys, "olmo2-13b-sharegpt", *options, "--fit", code="2")


def test_a_run_that_no_change_makes_fit_is_refused_and_one_that_fits_is_left_alone(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = large(tmp_path, 1)
    options = ["--model", model, "--devices", 1, "--max-length", 64]
    assert "no file is made" in told(capsys, "olmo2-13b-sharegpt", *options, "--memory", "80GB", "--fit")
    printed = told(capsys, "olmo2-13b-sharegpt", *options, "--memory", "1GiB", "--fit", code="2")
    assert "No change that learns the same fits 1.0 GiB" in printed
    assert "give its file or name" in told(capsys, "--model", model, "--memory", "1TB", "--fit", code="2")
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


class Rule:
    """A planner by a rule: 100 bytes of weights, and for each example 10, or 2 with gradient checkpointing."""

    def plan(self, setup):
        if setup.attention == "flash" and self.refuses_flash:
            raise HeadEditError("it has none")
        step = setup.batch_size * (2 if setup.checkpointing else 10) * (1 if setup.attention == "flash" else 2)
        validation = 2 * setup.in_validation
        share = Share(base=100, trained=0, saved=step, working=0, validation=validation, process=0)
        none = {"dtypes": {}, "buffers": 0, "parameters": 0, "edits": 0, "gradients": 0, "optimizer": 0, "process": 0}
        figures = {"saved": step, "working": 0, "validation": validation}
        return Plan(setup=setup, weights=100, **figures, **none, shares=(share,))

    refuses_flash = False


CASES = {  # bytes, whether FlashAttention may be chosen: what is changed
    "it fits": (1000, False, {}),
    "FlashAttention first": (
        180,
        True,
        {"model.attn_implementation": "flash_attention_2", "training.per_device_eval_batch_size": 24},
    ),
    "then smaller batches": (
        180,
        False,
        {
            "recipe.batch_size": 3,
            "training.gradient_accumulation_steps": 10,
            "training.per_device_eval_batch_size": 24,
        },
    ),
    "then layers that are run again": (
        116,
        False,
        {
            "recipe.batch_size": 3,
            "training.gradient_accumulation_steps": 10,
            "training.gradient_checkpointing": True,
            "training.gradient_checkpointing_kwargs": {"use_reentrant": False},
            "training.per_device_eval_batch_size": 3,
        },
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_changes_are_tried_by_what_they_cost_and_keep_the_examples_of_a_step(case):
    memory, flash, settings = CASES[case]
    plan = Rule().plan(Setup(batch_size=6, eval_batch_size=24))
    assert find_fit(Rule(), plan, memory, accumulation=5, flash=flash).settings == settings


def test_where_nothing_fits_safely_the_least_is_taken_and_below_that_nothing():
    planner = Rule()
    plan = planner.plan(Setup(batch_size=6, eval_batch_size=24))
    tight = find_fit(planner, plan, 104)
    assert (tight.plan.total, tight.plan.verdict(104), tight.settings["recipe.batch_size"]) == (104, "tight", 1)
    assert find_fit(planner, plan, 103) is None
    planner.refuses_flash = True
    assert "model.attn_implementation" not in find_fit(planner, plan, 180, flash=True).settings


def test_the_changed_run_learns_what_the_run_learns(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    content = {
        "model": {"name": save_model(tmp_path / "model"), "device": "cpu", "dtype": "float32"},
        "data": {"train": save_records(tmp_path, "alpaca", 32), "valid": 8, "max_length": 256},
        "recipe": {"name": "refit", "epochs": 2, "batch_size": 8},
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(content))
    run = read_run("run.yaml")
    config = run.model.load_config()
    half = Planner(config, run.edits).plan(setup_of(run, config, batch_size=4, eval_batch_size=4))
    told(capsys, "run.yaml", "--memory", half.careful, "--fit")
    changed = read_run("run-fit.yaml")
    assert (changed.recipe["batch_size"], changed.training["gradient_accumulation_steps"]) == (4, 2)
    learnt = []
    for name in ("run", "run-fit"):
        found = headedit.train(f"{name}.yaml", output=str(tmp_path / name), progress=False)
        assert found.record["steps"] == 6
        learnt.append(torch.cat([p.detach().flatten() for p in found.edits.vector_parameters()]))
    assert learnt[0].abs().max() > 1e-3
    assert torch.allclose(*learnt, atol=1e-5)
