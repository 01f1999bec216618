"""The comparison on the embedded model, and LoRA as a peer."""

import json
import sys
import tempfile

import pytest
import torch

from headedit import HeadEditError
from headedit.bench.compare import lora
from headedit.bench.compare import methods as method_module
from headedit.bench.compare import tasks as comparison
from headedit.bench.compare.lora import LoraSettings, best_lora, train_lora
from headedit.bench.compare.methods import LORA, NO_GATE, Problem, method, methods
from headedit.bench.compare.tasks import compare_methods
from headedit.bench.plots import compare as plots
from headedit.bench.recovery.planted import build
from headedit.cli.main import main
from headedit.demo import tasks
from headedit.demo.comparison import DEMO_TASKS
from headedit.training.recipes import RECIPES

QUICK = {"epochs": 1, "min_steps": 1}
ROWS = [{"input_ids": [5, 6, 7, 8], "labels": [-100, 9, 9, 9]}] * 12


def test_training_examples_are_nested_and_test_examples_are_unseen_and_the_same():
    few, test = DEMO_TASKS.examples("swap", 8, 3, 50)
    many, same = DEMO_TASKS.examples("swap", 200, 3, 50)
    assert many[:8] == few
    assert test == same
    assert [r["prompt"] for r in tasks.records("swap", 8, cued=False, seed=3)] == [prompt for prompt, _ in few]
    assert not {prompt for prompt, _ in many} & {prompt for prompt, _ in test}
    assert DEMO_TASKS.examples("swap", 8, 4, 50) != (few, test)
    assert all(prompt.startswith("? : ") for prompt, _ in few + test)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tasks": ["swop"]}, r"There is no task 'swop'\. Did you mean 'swap'\?"),
        ({"sizes": [2000]}, "sizes: found 2000, expected 1 to 1000"),
        ({"names": ["oracle"]}, "There is no method 'oracle'"),
        ({"test_examples": 0}, "test_examples: found 0"),
        ({"names": []}, "nothing to run"),
        ({"changes": {"jola": {"epochs": 0}}, "names": ["jola"]}, "epochs: found 0"),
    ],
)
def test_a_mistake_in_a_comparison_is_reported_before_any_work(arguments, message, monkeypatch):
    monkeypatch.setattr(comparison, "run_units", lambda *a, **k: pytest.fail("work was done"))
    with pytest.raises(HeadEditError, match=message):
        compare_methods(DEMO_TASKS, **{"names": ["localise"], **arguments})


@pytest.fixture(scope="module")
def small():
    """Two tasks, eight examples and sixteen, by the unedited model and every head without gates."""
    changes = {NO_GATE: {"epochs": 1, "min_steps": 20}}
    arguments = {"test_examples": 60, "changes": changes, "progress": False}
    return compare_methods(DEMO_TASKS, ["reverse", "swap"], [8, 16], [0], ["unedited", NO_GATE], **arguments)


def test_the_comparison_has_a_row_per_run(small):
    keys = [(row["task"], row["size"], row["method"]) for row in small.rows]
    assert keys == [(t, n, c) for t in ("reverse", "swap") for n in (8, 16) for c in ("unedited", NO_GATE)]
    base, edited = small.rows[:2]
    assert base["exact_match"] < 0.3
    assert edited["exact_match"] > base["exact_match"] + 0.2
    assert edited["loss"] < base["loss"]
    assert (base["parameters"], base["heads"], base["seconds"]) == (0, 0, 0.0)
    assert (edited["parameters"], edited["heads"], edited["gates"]) == (1024, 32, 64)
    assert small.rows[0]["loss"] == small.rows[2]["loss"]


def test_the_comparison_is_written_as_json_and_markdown(small):
    assert json.loads(json.dumps(small.to_dict()))["rows"] == small.rows
    text = small.markdown()
    block = text.split("## 16 examples, mean of 1 seed\n")[1]
    rows = {(row["task"], row["method"]): row for row in small.rows if row["size"] == 16}
    scores = [rows["swap", name]["exact_match"] for name in ("unedited", NO_GATE)]
    assert f"| swap | {scores[0]:.3f} | {scores[1]:.3f} |" in block
    mean = sum(rows[task, NO_GATE]["exact_match"] for task in ("reverse", "swap")) / 2
    assert f"| {mean:.3f} |" in next(line for line in block.splitlines() if line.startswith("| mean of the tasks"))
    assert "| parameters | 0 | 1,024 |" in block


def test_the_picture_of_the_comparison_has_a_panel_per_task_and_a_line_per_method(small):
    figure = plots.tasks(small.rows)
    panels = [axis for axis in figure.axes if axis.axison]
    assert [axis.get_title() for axis in panels] == ["reverse", "swap"]
    assert [axis.get_xlabel() for axis in panels] == ["training examples"] * 2
    assert panels[0].get_ylabel() == "exact match"
    lines = {line.get_label(): line for line in panels[1].get_lines()}
    expected = [row["exact_match"] for row in small.rows if (row["task"], row["method"]) == ("swap", NO_GATE)]
    assert lines[NO_GATE].get_xdata().tolist() == [8, 16]
    assert lines[NO_GATE].get_ydata().tolist() == expected
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["unedited", NO_GATE]
    six = plots.tasks([{**row, "task": task} for row in small.rows[:2] for task in tasks.TASKS])
    assert [axis.get_xlabel() for axis in six.axes] == [""] * 3 + ["training examples"] * 3


def test_recipes_that_choose_heads_or_edit_all_are_methods_and_the_oracle_is_one_where_heads_are_planted():
    known = methods()
    assert {"unedited", NO_GATE, LORA, "localise", "jola", "lofit"} <= set(known)
    assert {"ist", "rst"} & set(RECIPES) == {"ist", "rst"} & set(known)
    assert "oracle" not in known
    assert "oracle" in methods(planted=True)


@pytest.mark.parametrize("name", ["localise", "jola", "lofit", NO_GATE])
def test_a_method_counts_what_is_open_and_leaves_no_folder(name, tmp_path, monkeypatch):
    monkeypatch.setattr(method_module.tempfile, "tempdir", str(tmp_path))
    quick = QUICK if name in ("localise", NO_GATE) else {"epochs": 1}
    problem = Problem(fresh=lambda: build("llama", 0), train=ROWS[:5], score=lambda model: 0.25)
    outcome = method(name)(problem, quick)
    opened = {
        (site, vector, head)
        for site, edit in enumerate(outcome.model.headedit.default)
        for vector in edit.vectors
        for head, is_open in enumerate(edit.is_open(vector).tolist())
        if is_open
    }
    assert (outcome.gates, outcome.parameters) == (len(opened), 16 * len(opened))
    assert outcome.heads == len({(site, head) for site, _, head in opened})
    if name == NO_GATE:
        assert outcome.found is None
    else:
        assert {(s, v, h) for v, heads in outcome.found.items() for s, h in heads} == opened
    assert outcome.score == 0.25
    assert outcome.seconds > 0
    assert not outcome.model.training
    assert not list(tmp_path.iterdir())


def test_the_best_of_three_learning_rates_is_reported_for_lora(monkeypatch):
    made = []

    def train(model, rows, settings, rate, seed, pad):
        made.append(model)
        model.rate = rate
        return model

    monkeypatch.setattr(lora, "train_lora", train)
    scores = {1e-3: 0.4, 3e-3: 0.9, 1e-2: 0.6}
    best = best_lora(lambda: torch.nn.Linear(2, 3), ROWS, lambda model: scores[model.rate])
    assert (best.score, best.learning_rate, best.model.rate) == (0.9, 3e-3, 3e-3)
    assert [(run["learning_rate"], run["score"]) for run in best.tried] == list(scores.items())
    assert best.seconds == best.tried[1]["seconds"]
    assert best.parameters == 9
    assert len({id(model) for model in made}) == 3


@pytest.mark.parametrize(("shape", "parameters"), [("llama", 4 * 2 * 8 * 256), ("gpt2", 4 * 8 * (128 + 3 * 128))])
def test_training_lora_changes_its_adapter_and_nothing_else(shape, parameters, tmp_path, monkeypatch):
    pytest.importorskip("peft")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    settings = LoraSettings(epochs=2, min_steps=12)
    before = {name: value.clone() for name, value in build(shape, 0).state_dict().items()}
    model = train_lora(build(shape, 0), ROWS, settings, 1e-2, 0, 0)
    assert not model.training
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == parameters
    ids = torch.tensor([[5, 6, 7, 8]])
    assert (model(input_ids=ids).logits.argmax(-1)[0, :3] == 9).all()
    again = train_lora(build(shape, 0), ROWS, settings, 1e-2, 0, 0)
    assert torch.equal(model(input_ids=ids).logits, again(input_ids=ids).logits)
    base = model.unload().state_dict()
    assert all(torch.equal(base[name], value) for name, value in before.items())
    assert not list(tmp_path.iterdir())


def test_lora_as_a_method():
    pytest.importorskip("peft")
    problem = Problem(fresh=lambda: build("qwen3", 0), train=ROWS[:3], score=lambda model: 0.5)
    changes = {"epochs": 1, "min_steps": 1, "learning_rates": [1e-3, 2e-3]}
    outcome = method(LORA)(problem, changes)
    assert (outcome.heads, outcome.gates, outcome.found) == (None, None, None)
    assert outcome.parameters == 4 * 8 * (128 + 128 + 128 + 32)
    assert outcome.details["learning_rate"] == 1e-3
    assert [run["learning_rate"] for run in outcome.details["tried"]] == [1e-3, 2e-3]


def test_lora_without_peft_is_refused_with_what_to_install_before_any_work(monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    monkeypatch.setattr(comparison, "run_units", lambda *a, **k: pytest.fail("work was done"))
    with pytest.raises(HeadEditError, match="pip install peft"):
        compare_methods(DEMO_TASKS, ["swap"], [8], [0], ["localise", LORA])


@pytest.mark.parametrize(
    ("fields", "message"), [({"r": 0}, "r: found 0"), ({"learning_rates": []}, "learning_rates: the list is empty")]
)
def test_impossible_settings_of_lora_are_refused(fields, message):
    with pytest.raises(HeadEditError, match=message):
        LoraSettings(**fields)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tasks", "reverse,sorted"], "There is no task 'sorted'. Did you mean 'sort'?"),
        (["--sizes", "few"], "--sizes: found 'few'"),
        (["--sizes", "200,5000"], "sizes: found 5000, expected 1 to 1000 examples."),
        (["--tasks", ","], "There is nothing to run"),
    ],
)
def test_the_demo_checks_what_it_compares_before_it_trains(arguments, message, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("headedit.demo.run.run_demo", lambda *given, **named: pytest.fail("trained"))
    with pytest.raises(SystemExit, match="2"):
        main(["demo", "--compare", "--output", str(tmp_path / "out"), *arguments])
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
