"""The embedded model and the demo over it, with the figures they promise."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed

from headedit import HeadEditError
from headedit.data import to_pair
from headedit.demo import MODEL_FOLDER, pretrain, tasks
from headedit.demo.run import run_demo
from headedit.evaluation import exact_match


@pytest.fixture(scope="module")
def embedded():
    return AutoModelForCausalLM.from_pretrained(MODEL_FOLDER), AutoTokenizer.from_pretrained(MODEL_FOLDER)


def test_the_tasks_do_what_their_names_say():
    done = {name: task("dbca" + "z") for name, task in tasks.TASKS.items()}
    assert done == {
        "copy": "dbcaz",
        "reverse": "zacbd",
        "sort": "abcdz",
        "next": "ecdba",
        "first": "ddddd",
        "swap": "bdacz",
    }


def test_the_examples_of_a_task_are_seeded_and_distinct():
    first = tasks.records("sort", 50, cued=False, seed=1)
    assert first == tasks.records("sort", 50, cued=False, seed=1) != tasks.records("sort", 50, cued=False, seed=2)
    prompts = {row["prompt"] for row in first}
    assert len(prompts) == 50
    assert {4, 5, 6, 7, 8} == {len(row["response"].split()) for row in first}
    assert all(prompt.startswith("? : ") for prompt in prompts)


def test_the_embedded_model_is_a_small_llama(embedded):
    model, _ = embedded
    assert type(model).__name__ == "LlamaForCausalLM"
    assert (model.config.num_hidden_layers, model.config.num_attention_heads) == (4, 8)
    assert (MODEL_FOLDER / "model.safetensors").stat().st_size < 2_000_000


@pytest.mark.parametrize("task", sorted(tasks.TASKS))
def test_the_embedded_model_knows_the_task_by_its_cue_and_guesses_without(embedded, task):
    rows = {cued: tasks.records(task, 200, cued=cued, seed=424_242) for cued in (True, False)}
    measured = {
        cued: exact_match(*embedded, [to_pair(r, "r") for r in rows[cued]], batch_size=200, progress=False).accuracy
        for cued in rows
    }
    assert measured[True] >= 0.95
    assert measured[False] <= 0.5
    logged = json.loads((MODEL_FOLDER / "training_log.json").read_text())
    assert measured[True] == pytest.approx(logged["accuracy"][task]["cued"], abs=0.05)
    assert measured[False] == pytest.approx(logged["accuracy"][task]["uncued"], abs=0.1)
    assert logged["parameters"] == sum(p.numel() for p in embedded[0].parameters())


def test_pretraining_is_reproducible_and_learns(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(pretrain, "measure", lambda model, tokenizer: {})
    for name in ("a", "b"):
        arguments = ["--output", str(tmp_path / name), "--steps", "20", "--batch-size", "8"]
        pretrain.main(arguments)
    first, second = (AutoModelForCausalLM.from_pretrained(tmp_path / name).state_dict() for name in ("a", "b"))
    assert all(torch.equal(first[name], second[name]) for name in first)
    log = json.loads((tmp_path / "a" / "training_log.json").read_text())["log"]
    assert log[-1]["loss"] < log[0]["loss"] - 0.2
    assert log[-1]["step"] == 20


def test_the_embedded_tokenizer_and_shape_are_those_of_the_script(embedded):
    model, tokenizer = embedded
    made = pretrain.build_tokenizer()
    assert made.get_vocab() == tokenizer.get_vocab()
    set_seed(0)
    fresh = pretrain.build_model(made)
    assert {n: p.shape for n, p in fresh.named_parameters()} == {n: p.shape for n, p in model.named_parameters()}


def test_the_demo_teaches_its_task_and_writes_its_files(tmp_path):
    demo = run_demo(tmp_path / "demo", progress=False)
    assert demo.report.n == 500
    assert demo.report.accuracy >= 0.95
    assert demo.parameters == demo.run.path.chosen * 16 < 16_384 / 20  # of LoRA r 8 on queries and values
    assert demo.report.base_accuracy < 0.2
    assert demo.report.constant_accuracy < 0.05
    opened = demo.run.record["open"]
    assert 0 < opened["offset"]["open"] < 32
    assert 0 < opened["scale"]["open"] < 32
    assert demo.seconds < 300
    assert all(path.stat().st_size > 100 for path in demo.files)
    names = {path.name for path in (tmp_path / "demo").iterdir()}
    assert {
        "gates.png",
        "path.png",
        "history.png",
        "path.json",
        "summary.md",
        "headedit.safetensors",
        "headedit_config.json",
    } <= names
    summary = (tmp_path / "demo" / "summary.md").read_text()
    for what in (
        "base model",
        "constant answer",
        "edited model",
        "edited heads",
        "open offset gates",
        "parameters of the edits",
        "time",
    ):
        assert f"| {what} |" in summary
    assert f"{demo.report.accuracy:.1%}" in summary


def test_a_task_that_the_demo_lacks_is_refused_before_any_work(tmp_path):
    with pytest.raises(HeadEditError, match=r"There is no task 'revers'\. Did you mean 'reverse'\?"):
        run_demo(tmp_path / "demo", task="revers")
    assert not (tmp_path / "demo").exists()
