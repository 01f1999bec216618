"""LoFiT by DPO: pairs from a task, the published run by its name, and a run from the pairs to saved edits."""

import dataclasses
import json
import math

import pytest
import torch
from run_inputs import save_model
from tiny import logits
from typer.testing import CliRunner

import headedit
from headedit import HeadEditError
from headedit.cli.main import app
from headedit.evaluation.tasks.export import preference_records
from headedit.hf.loading import load_model
from headedit.training.preferences import read_preferences, train_preferences
from headedit.training.preferences.config import shipped_preferences
from headedit.training.preferences.run import read_pairs

pytest.importorskip("trl")

QUESTIONS = [
    {
        "Question": f"What is the sum of {word}?",
        "Best Answer": "The sum is five",
        "Correct Answers": "The sum is five; five",
        "Incorrect Answers": "a b c; the answer is a",
    }
    for word in ("two", "three", "five", "the answer")
]
PROMPT = "Q: {{ question }} A:"


def save_pairs(folder):
    records, _ = preference_records("truthfulqa_mc1", data=QUESTIONS, prompt=PROMPT)
    file = folder / "pairs.jsonl"
    file.write_text("\n".join(map(json.dumps, records)))
    return str(file)


def test_pairs_are_the_best_answer_and_the_first_incorrect_one(tmp_path):
    first, *_ = read_pairs(save_pairs(tmp_path))
    prompt = "Q: What is the sum of two? A:"
    assert first == {"prompt": prompt, "chosen": "The sum is five.", "rejected": "a b c."}
    with pytest.raises(HeadEditError, match="'mquake' has no options"):
        preference_records("mquake", data=[])


def test_pairs_are_of_the_split_that_is_asked_for(tmp_path):
    for split, rows in (("validation", QUESTIONS[:1]), ("other", QUESTIONS[1:])):
        (tmp_path / f"{split}.json").write_text(json.dumps(rows))
    for split, count in (("validation", 1), ("other", 3)):
        records, _ = preference_records("truthfulqa_mc1", data=tmp_path, split=split, prompt=PROMPT)
        assert len(records) == count
    with pytest.raises(HeadEditError, match=r"holds no train\.json"):
        preference_records("truthfulqa_mc1", data=tmp_path, prompt=PROMPT)


def test_a_record_whose_options_are_all_right_gives_no_pair():
    changes = {"reader": None, "prompt": "{{ q }}", "options": "o", "answer": "a"}
    rows = [{"q": "?", "o": ["x", "y"], "a": ["x", "y"]}]
    with pytest.raises(HeadEditError, match="record 1: every option is right, so none can be rejected"):
        preference_records("truthfulqa_mc2", data=rows, **changes)
    records, broken = preference_records(
        "truthfulqa_mc2", data=[*rows, {"q": "?", "o": ["x", "y"], "a": ["y"]}], skip_broken=True, **changes
    )
    assert records == [{"prompt": "?", "chosen": "y", "rejected": "x"}]
    assert len(broken) == 1


def test_the_shipped_run_has_the_published_values():
    assert list(shipped_preferences()) == ["lofit-truthfulqa"]
    run = read_preferences("lofit-truthfulqa")
    assert (run.heads, run.beta, run.epochs, run.batch_size, run.seed) == (32, 0.5, 5, 8, 42)
    assert (run.select_lr, run.select_lambda, run.edit_lr) == (5e-3, 5e-4, 1e-2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"heads": 0}, "heads: found 0, expected a number above 0"),
        ({"training.learning_rate": 1}, "training: 'learning_rate' is set by this run"),
        ({"training.warmup_step": 1}, "Did you mean 'warmup_steps'"),
        ({"betta": 1}, "unknown key 'betta'. Did you mean 'beta'"),
    ],
)
def test_a_wrong_value_is_named(changes, message):
    with pytest.raises(HeadEditError, match=message):
        read_preferences("lofit-truthfulqa", changes)


def test_records_without_preferences_are_refused(tmp_path):
    (tmp_path / "rows.jsonl").write_text(json.dumps({"prompt": "a", "response": "b"}))
    with pytest.raises(HeadEditError, match=r"rows\.jsonl, line 1: expected the texts prompt, chosen and rejected"):
        read_pairs(str(tmp_path / "rows.jsonl"))


def test_a_run_edits_the_chosen_heads_and_prefers_what_was_chosen(tmp_path, ids):
    model = save_model(tmp_path / "model")
    pairs = save_pairs(tmp_path)
    changes = {"model.name": model, "model.device": "cpu", "train": pairs, "valid": pairs, "heads": 3, "epochs": 3}
    changes |= {"batch_size": 2, "output": str(tmp_path / "out"), "edit_lr": 5e-2}
    edits = train_preferences(read_preferences("lofit-truthfulqa", changes), progress=False)
    record = json.loads((tmp_path / "out" / "dpo.json").read_text())
    assert len(record["heads"]) == 3
    scores = [score for _, _, score in record["heads"]]
    assert scores == sorted(scores, reverse=True)
    assert edits.count_open()["any"][0] == 3
    rows = [json.loads(line) for line in (tmp_path / "out" / "history.jsonl").read_text().splitlines()]
    assert {row["stage"] for row in rows} == {"select", "edit"}
    last = [row["eval_loss"] for row in rows if "eval_loss" in row][-1]
    assert last < 0.9 * math.log(2)  # the loss of a policy that prefers neither
    headedit.load(fresh := load_model(model, device="cpu"), tmp_path / "out")
    assert torch.equal(logits(fresh, ids), logits(edits.model, ids))
    again = read_preferences(tmp_path / "out" / "dpo.yaml", {"output": str(tmp_path / "out")})
    with pytest.raises(HeadEditError, match="already exists and is not an empty folder"):
        train_preferences(again)


def test_the_commands_lead_from_a_task_to_edits(tmp_path):
    questions = tmp_path / "questions.jsonl"
    questions.write_text("\n".join(map(json.dumps, QUESTIONS)))
    pairs = str(tmp_path / "pairs.jsonl")
    words = ["export", "truthfulqa_mc1", "--preferences", "--data", str(questions), "--output", pairs]
    done = CliRunner().invoke(app, [*words, "--set", f"prompt={json.dumps(PROMPT)}"], catch_exceptions=False)
    assert "4 records of truthfulqa_mc1" in done.stdout
    words = ["dpo", "lofit-truthfulqa", "--model", save_model(tmp_path / "model"), "--output", str(tmp_path / "out")]
    for setting in (f"train={pairs}", "heads=2", "epochs=1", "model.device=cpu", "training.max_steps=1"):
        words += ["--set", setting]
    done = CliRunner().invoke(app, words, catch_exceptions=False)
    assert "2 of 8" in done.stdout
    assert "4 of " in done.stdout
    assert "0.6931 is no preference" in done.stdout
    first, second = (
        f"L{layer}H{head}" for layer, head, _ in json.loads((tmp_path / "out" / "dpo.json").read_text())["heads"]
    )
    assert f"{first}, {second}" in done.stdout
    assert (tmp_path / "out" / "headedit.safetensors").is_file()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rejected": "b"}, r"rows\.jsonl, line 2: chosen and rejected are the same text, so neither is preferred"),
        ({"prompt": "a \ud83d"}, r"rows\.jsonl, line 2: the field 'prompt' holds half of a character"),
    ],
)
def test_a_pair_from_which_nothing_can_be_learned_is_named(change, message, tmp_path):
    good = {"prompt": "a", "chosen": "b", "rejected": "c"}
    (tmp_path / "rows.jsonl").write_text(f"{json.dumps(good)}\n{json.dumps(good | change)}\n")
    with pytest.raises(HeadEditError, match=message):
        read_pairs(str(tmp_path / "rows.jsonl"))


def preferences(tmp_path, **changes):
    """A run of one step on the pairs of a folder, of which each stage has its own."""
    given = {"model.name": save_model(tmp_path / "model"), "model.device": "cpu", "heads": 2, "epochs": 1}
    given |= {"output": str(tmp_path / "out"), "training.max_steps": 1, "train": save_pairs(tmp_path), **changes}
    return read_preferences("lofit-truthfulqa", given)


def test_pairs_that_are_too_long_are_left_out_and_counted(tmp_path, caplog):
    config = preferences(tmp_path, max_length=60)
    with open(config.train, "a") as file:
        file.write("\n" + json.dumps({"prompt": "two and three " * 90, "chosen": "a", "rejected": "b"}))
    train_preferences(config, progress=False)
    assert "1 of 5 pairs have more than max_length=60 tokens, the longest" in caplog.text
    assert json.loads((tmp_path / "out" / "dpo.json").read_text())["pairs"] == 4
    with pytest.raises(HeadEditError, match=r"5 of 5 pairs have more than max_length=3 tokens, .*; raise max_length"):
        train_preferences(dataclasses.replace(config, max_length=3, output=str(tmp_path / "other")))


def test_arguments_that_trl_refuses_are_named(tmp_path):
    with pytest.raises(HeadEditError, match="'eval_strategy' needs validation pairs; give valid"):
        preferences(tmp_path, **{"training.eval_strategy": "epoch"})
    config = preferences(tmp_path, **{"training.fp16": True, "training.bf16": True})
    with pytest.raises(HeadEditError, match=r"training: TRL refuses these arguments: .*fp16"):
        train_preferences(config, progress=False)
