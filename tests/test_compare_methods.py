"""``headedit compare``: every method on the same examples, resumed where it was killed, with one table."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import matplotlib.pyplot as plt
import pytest
import torch
from run_inputs import WORDS, save_model
from tiny import tiny_model

import headedit
from headedit import CompareConfig, HeadEditError
from headedit.bench.compare import cells
from headedit.bench.compare.cells import CELL_FILE, examples_of, plan_cells
from headedit.bench.compare.learning import METHODS, RECIPES
from headedit.bench.compare.peers.adapters import PEERS
from headedit.bench.compare.peers.training import Budget, train_peer
from headedit.bench.compare.result import result_of
from headedit.bench.plots import methods as plots
from headedit.cli.main import main
from headedit.evaluation.scores.statistics import wilson

TASK = """
prompt: "Word: {{ text }} Kind (animal, thing):"
template: plain
answer: label
options: [animal, thing]
scoring: loglikelihood
delimiter: " "
"""
ANIMALS = {"cat", "dog", "bird"}
TIMES = ("seconds", "eval_seconds", "peak_bytes", "tried")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("compare")
    save_model(made / "model", hidden_size=32, num_hidden_layers=2)
    draw = random.Random(0)
    (made / "words").mkdir()
    for split, count in (("train", 40), ("test", 20)):
        words = [" ".join(draw.choices(WORDS, k=3)) for _ in range(count)]
        rows = [{"text": text, "label": "animal" if text.split()[0] in ANIMALS else "thing"} for text in words]
        (made / "words" / f"{split}.json").write_text(json.dumps(rows))
    (made / "words.yaml").write_text(TASK)
    return made


def comparison(folder, output, **changes):
    content = {
        "model": {"name": str(folder / "model"), "dtype": "float32", "device": "cpu"},
        "tasks": {"words": {"task": "words.yaml", "data": "words"}},
        "output": str(output),
        "methods": ["zero-shot", "no gate", "lora"],
        "sizes": [8],
        "epochs": 1,
        "batch_size": 4,
        "test_examples": 12,
        **changes,
    }
    file = folder / f"{Path(output).name}.yaml"
    file.write_text(json.dumps(content))
    return file


def quiet(line):
    """Says nothing."""


def without_times(rows):
    return [
        {
            **{key: value for key, value in row.items() if key not in TIMES},
            "losses": [tried["validation_loss"] for tried in row.get("tried", [])],
        }
        for row in rows
    ]


@pytest.fixture(scope="module")
def everything(folder, tmp_path_factory):
    """The result of every method, with two learning rates for each peer."""
    peers = {name: {"rates": [1e-3, 1e-2]} for name in PEERS}
    methods = {name: peers.get(name, {}) for name in METHODS}
    methods["lofit"] = {"share": 0.5}
    file = comparison(folder, tmp_path_factory.mktemp("all"), methods=methods)
    return headedit.compare(file, say=quiet)


def test_every_method_runs_and_has_a_score_with_an_interval_and_its_cost(everything):
    assert [row["method"] for row in everything.rows] == list(METHODS)
    assert [row.get("error") for row in everything.rows] == [None] * len(METHODS)
    for line in everything.rows:
        assert line["low"] <= line["score"] <= line["high"]
        assert len(line["values"]) == line["test_examples"] == 12
        assert line["score"] == pytest.approx(sum(line["values"]) / 12)
        learns = line["method"] not in ("zero-shot", "few-shot")
        assert (line["parameters"] > 0, line["seconds"] > 0, line["disk_bytes"] > 0) == (learns,) * 3
        assert line["peak_bytes"] is None or line["peak_bytes"] > 0


def test_peers_choose_the_learning_rate_with_the_lowest_validation_loss_and_every_try_costs_time(everything):
    for row in everything.rows:
        if row["method"] in PEERS:
            assert [tried["learning_rate"] for tried in row["tried"]] == [1e-3, 1e-2]
            best = min(row["tried"], key=lambda tried: tried["validation_loss"])
            assert row["learning_rate"] == best["learning_rate"]
            assert row["seconds"] > sum(tried["seconds"] for tried in row["tried"])


def test_methods_that_choose_heads_name_them_and_ablations_edit_one_kind_of_vector(everything):
    by_method = {row["method"]: row for row in everything.rows}
    assert {name for name, row in by_method.items() if row["found"] is not None} == {"localise", "jola", "lofit"}
    assert by_method["offset only"]["parameters"] == by_method["scale only"]["parameters"]
    assert by_method["no gate"]["parameters"] == 2 * by_method["offset only"]["parameters"]
    assert by_method["few-shot"]["notes"] == "8 examples in the prompt"


def test_tables_and_pictures_hold_every_method(everything, folder):
    text = everything.markdown()
    assert "words, 8 examples: accuracy on 12 test examples, 1 seed" in text
    for name in METHODS:
        assert text.count(f"| {name} ") >= 2  # the table of the task, and that of ranks
    for draw in (plots.by_examples, plots.by_parameters):
        figure = draw([line for line in everything.summary if "score" in line])
        assert [text.get_text() for text in figure.legends[0].get_texts()] == list(METHODS)
        plt.close(figure)


def test_all_methods_are_given_the_same_examples(folder, tmp_path):
    config = CompareConfig.read(comparison(folder, tmp_path))
    tokenizer = config.model.load_tokenizer()
    first, *others = (examples_of(cell, tokenizer) for cell in plan_cells(config, ["no gate", "lora", "ist"]))
    assert len(first) == 8
    assert all(other == first for other in others)
    assert first[0][0].startswith("Word: ")
    assert {response for _, response in first} <= {" animal", " thing"}


def test_a_comparison_that_was_killed_ends_with_the_same_table(folder, tmp_path):
    one, other = (comparison(folder, tmp_path / name) for name in ("whole", "killed"))
    process = subprocess.Popen(
        [sys.executable, "-m", "headedit", "compare", str(other)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    cell = tmp_path / "killed" / "words" / "8-examples" / "seed-0"
    until = time.monotonic() + 120
    while not (cell / "no-gate" / "learned").exists() and time.monotonic() < until and process.poll() is None:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert (cell / "zero-shot" / CELL_FILE).exists()
    assert not (cell / "lora" / CELL_FILE).exists()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        whole = headedit.compare(one, say=quiet)
        lines = []
        resumed = headedit.compare(other, say=lines.append)
    finally:
        torch.set_num_threads(threads)
    assert not any("zero-shot" in line for line in lines)
    assert without_times(resumed.rows) == without_times(whole.rows)


def test_a_finished_comparison_is_not_run_again_and_another_one_is_refused(folder, tmp_path):
    file = comparison(folder, tmp_path / "once", methods=["zero-shot"])
    first = headedit.compare(file, say=quiet)
    lines = []
    assert headedit.compare(file, say=lines.append).rows == first.rows
    assert lines == []
    with pytest.raises(HeadEditError, match=r"zero-shot: holds a cell of another comparison"):
        headedit.compare(file, {"test_examples": 5}, say=quiet)


def test_a_method_that_the_model_has_no_place_for_is_a_line_of_the_table_and_the_others_run(folder, tmp_path):
    file = comparison(folder, tmp_path / "long", methods={"few-shot": {}, "zero-shot": {}})
    result = headedit.compare(file, {"tasks.words.changes": {"template": "alpaca"}}, say=quiet)
    assert "needs a prompt and the template 'plain'" in result.rows[0]["error"]
    assert result.rows[1]["score"] >= 0
    assert "## Not run" in result.markdown()
    lines = []
    headedit.compare(file, {"tasks.words.changes": {"template": "alpaca"}}, say=lines.append)
    assert [line for line in lines if line.startswith("[")] == ["[1/2] words, 8 examples, seed 0, few-shot"]


def test_options_of_which_several_are_right_are_compared_by_their_probability(folder, tmp_path):
    changes = {"answer": "right", "options": "choices", "labels": "text", "metrics": ["mc2"]}
    (tmp_path / "data").mkdir()
    rows = [{"text": text, "choices": ["animal", "thing", "cat"], "right": ["animal", "cat"]} for text in WORDS]
    for split in ("train", "test"):
        (tmp_path / "data" / f"{split}.json").write_text(json.dumps(rows))
    task = {"task": "words.yaml", "data": str(tmp_path / "data"), "changes": changes}
    file = comparison(folder, tmp_path / "mc2", tasks={"several": task}, methods=["zero-shot", "no gate"], sizes=[4])
    result = headedit.compare(file, say=quiet)
    assert [row.get("error") for row in result.rows] == [None, None]
    for row in result.rows:
        assert row["metric"] == "mc2"
        assert len(row["values"]) == row["test_examples"] > 2
        assert row["score"] == pytest.approx(sum(row["values"]) / len(row["values"]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"methods": ["locolise"]}, "there is no method 'locolise'. Did you mean 'localise'"),
        ({"methods": {"lora": {"ranks": 4}}}, "methods: lora: unknown key 'ranks'"),
        ({"methods": {"lora": {"rates": []}}}, "methods: lora: rates: found"),
        ({"methods": {"few-shot": {"rates": [0.1]}}}, "methods: few-shot: unknown key 'rates'. Possible: shots"),
        ({"methods": {"zero-shot": {"rates": [0.1]}}}, "methods: zero-shot: unknown key 'rates'. It has no settings"),
        ({"methods": {"localise": {"head": 4}}}, "head"),
        ({"sizes": [8, 8]}, "sizes: found"),
        ({"sizes": [500]}, "has 40 training records, fewer than 500"),
        ({"tasks": {"wordz": {}}}, "There is no task 'wordz'"),
        ({"validation": 1.5}, "validation: found 1.5"),
        ({"metods": []}, "unknown key 'metods'"),
    ],
)
def test_a_mistake_in_a_comparison_is_named(changes, message, folder, tmp_path):
    with pytest.raises(HeadEditError, match=message):
        headedit.compare(comparison(folder, tmp_path / "wrong", **changes), say=quiet)


def test_the_command_writes_tables_and_pictures_and_lists_its_cells(folder, tmp_path, capsys):
    file = comparison(folder, tmp_path / "out", methods=["zero-shot", "no gate"])
    with pytest.raises(SystemExit, match="0"):
        main(["compare", str(file), "--dry-run"])
    assert re.findall(r"\bnew\b", capsys.readouterr().out) == ["new", "new"]  # of a table, or of a list in a narrow one
    assert not (tmp_path / "out").exists()
    with pytest.raises(SystemExit, match="0"):
        main(["compare", str(file)])
    assert {path.name for path in (tmp_path / "out").iterdir() if path.is_file()} == {
        "compare.json",
        "compare.md",
        "compare-examples.png",
        "compare-parameters.png",
    }


@pytest.mark.parametrize(
    ("changes", "messages"),
    [
        ({"sizes": [500]}, ["has 40 training records, fewer than 500"]),
        ({"tasks": {"words": {"task": "words.yaml", "data": "nowhere"}}}, ["nowhere"]),
        ({"tasks": {"words": {"task": "words.yaml", "data": "words", "test": "tost"}}}, ["tost"]),
        ({"model": {"name": "no-such-model"}}, ["No model could be loaded from 'no-such-model'"]),
        ({"output": "/dev/null/out"}, ["/dev/null/out: cannot be written"]),
        ({"sizes": [500], "output": "/dev/null/out"}, ["2 problems:", "cannot be written", "fewer than 500"]),
    ],
)
def test_a_dry_run_names_every_fault_of_files_and_model_and_writes_nothing(
    changes, messages, folder, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr("headedit.bench.compare.run.run_cell", lambda *given: pytest.fail("trained"))
    file = comparison(folder, **{"output": tmp_path / "dry", **changes})
    with pytest.raises(SystemExit, match="2"):
        main(["compare", str(file), "--dry-run"])
    told = capsys.readouterr().err
    assert all(message in told for message in messages), told
    assert not (tmp_path / "dry").exists()


def test_a_dry_run_finds_a_model_without_its_weights(folder, tmp_path, capsys):
    copy = tmp_path / "weightless"
    shutil.copytree(folder / "model", copy)
    (copy / "model.safetensors").unlink()
    file = comparison(folder, tmp_path / "weights", model={"name": str(copy), "device": "cpu"})
    with pytest.raises(SystemExit, match="2"):
        main(["compare", str(file), "--dry-run"])
    assert f"{copy}: holds no weights" in capsys.readouterr().err
    parts = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (copy / "model.safetensors.index.json").write_text(json.dumps(parts))
    (copy / "model-1.safetensors").touch()
    with pytest.raises(SystemExit, match="2"):
        main(["compare", str(file), "--dry-run"])
    assert "lacks 1 files of its weights, the first: model-2.safetensors" in capsys.readouterr().err


def test_a_method_is_tested_against_lora_on_the_same_test_examples_and_seeds(folder, tmp_path):
    config = CompareConfig.read(comparison(folder, tmp_path, seeds=[0, 1]))
    row = {"task": "words", "size": 8, "metric": "accuracy", "test_examples": 4, "low": 0.0, "high": 1.0}
    row |= {"parameters": 1, "heads": 1, "seconds": 1.0, "peak_bytes": 2**20, "disk_bytes": 2**19, "notes": ""}
    row |= {"learning_rate": None, "total_heads": 4}
    right = {("lora", 0): [1, 0, 0, 0], ("lora", 1): [1, 0, 0, 0], ("jola", 0): [1, 1, 1, 0], ("jola", 1): [1, 1, 0, 0]}
    found = {("jola", 0): [[0, 0], [0, 1]], ("jola", 1): [[0, 0], [1, 1]]}
    rows = [
        {**row, "method": method, "seed": seed, "values": [float(v) for v in values], "score": sum(values) / 4}
        | {"found": found.get((method, seed))}
        for (method, seed), values in right.items()
    ]
    lora, jola, *others = result_of(config, ["lora", "jola"], rows).summary
    assert lora["against_lora"] is None
    assert jola["against_lora"] == pytest.approx(3 / 8)
    assert jola["p_value"] == pytest.approx(2 / 2**4, abs=0.01)  # of four examples, each counted once
    assert (jola["peak_memory"], jola["disk"], jola["runs"]) == (1.0, 0.5, 2)
    assert [(line["method"], line["mean_rank"]) for line in others[:2]] == [("jola", 1.0), ("lora", 2.0)]
    assert others[2]["agreement"] == pytest.approx(1 / 3)
    assert others[2]["chance"] == pytest.approx(5 / 6 * 1 / 3 * 4 / 5 + 1 / 6, abs=0.2)


COUNTS = {"parameters": 1, "heads": 1, "seconds": 1.0, "peak_bytes": 2**20, "disk_bytes": 2**19, "notes": ""}


def row_of(method, seed, values, **changes):
    """The row of a finished cell."""
    row = {"task": "words", "size": 8, "method": method, "seed": seed, "metric": "accuracy", "values": values}
    if values is not None:
        low, high = wilson(round(sum(values)), len(values))
        row |= {"test_examples": len(values), "score": sum(values) / len(values), "low": low, "high": high}
    return {**row, **COUNTS, "learning_rate": None, "total_heads": None, "found": None, **changes}


def test_seeds_that_give_the_same_answers_make_a_comparison_no_more_certain(folder, tmp_path):
    config = CompareConfig.read(comparison(folder, tmp_path, seeds=[0, 1, 2]))
    values = {"lora": [1.0] * 6 + [0.0] * 6, "zero-shot": [1.0] * 10 + [0.0] * 2}
    rows = [row_of(method, seed, found) for seed in range(3) for method, found in values.items()]
    alone, together = (result_of(config, list(values), some).summary[:2] for some in (rows[:2], rows))
    for one, all_of_them in zip(alone, together, strict=True):
        figures = ("score", "score_low", "score_high", "against_lora", "p_value")
        assert [all_of_them[key] for key in figures] == pytest.approx([one[key] for key in figures])
    assert together[1]["p_value"] == pytest.approx(2 / 2**4)


def test_seeds_that_differ_have_an_interval_around_their_mean(folder, tmp_path):
    config = CompareConfig.read(comparison(folder, tmp_path, seeds=[0, 1]))
    rows = [row_of("lora", 0, [1.0, 0.0] * 20), row_of("lora", 1, [0.0, 0.0, 1.0, 1.0] * 10)]
    (line,) = result_of(config, ["lora"], rows).summary
    assert line["score_low"] < line["score"] == 0.5 < line["score_high"]
    assert line["score_high"] - line["score_low"] > 0.15


def test_a_metric_of_the_whole_set_has_a_difference_and_no_paired_test(folder, tmp_path):
    config = CompareConfig.read(comparison(folder, tmp_path, seeds=[0, 1]))
    scores = {"lora": (2.0, 3.0), "jola": (4.0, 4.5)}
    rows = [
        row_of(method, seed, None, metric="cider", score=score, low=score - 1, high=score + 1, test_examples=4)
        for method, found in scores.items()
        for seed, score in enumerate(found)
    ]
    lora, jola, *_ = result_of(config, ["lora", "jola"], rows).summary
    assert (jola["against_lora"], jola["p_value"]) == (1.75, None)
    assert (lora["score_low"], lora["score_high"]) == (1.5, 3.5)


def test_a_method_that_failed_with_some_seeds_shows_how_many_runs_it_has(folder, tmp_path):
    config = CompareConfig.read(comparison(folder, tmp_path, seeds=[0, 1]))
    rows = [row_of("lora", seed, [1.0, 0.0]) for seed in (0, 1)] + [row_of("jola", 0, [1.0, 1.0])]
    whole = result_of(config, ["lora"], rows[:2]).tables[0]
    assert "runs" not in whole[1]
    failed = {"task": "words", "size": 8, "method": "jola", "seed": 1, "error": "too little memory"}
    (_, header, cells), *_, (_, names, errors) = result_of(config, ["lora", "jola"], [*rows, failed]).tables
    assert [row[header.index("runs")] for row in cells] == [2, 1]
    assert dict(zip(names, errors[0], strict=True))["seed"] == 1


@pytest.mark.parametrize("name", PEERS)
def test_a_peer_begins_as_the_base_and_trains_its_own_parameters_alone(name):
    torch.manual_seed(0)
    model = tiny_model("llama").eval()
    ids = torch.randint(3, 100, (2, 6))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with torch.no_grad():
        base = model(input_ids=ids).logits
    adapted = PEERS[name].adapt(model, **PEERS[name].settings).eval()
    with torch.no_grad():
        found = adapted(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[:, -6:]
    if name not in ("prompt tuning", "loreft"):  # both begin at random
        torch.testing.assert_close(found, base, rtol=1e-5, atol=1e-6)
    trainable = [p for p in adapted.parameters() if p.requires_grad]
    start = [p.detach().clone() for p in trainable]
    rows = [{"input_ids": [5, 6, 7, 8], "labels": [-100, -100, 7, 8]}] * 4
    train_peer(adapted, rows, Budget(epochs=3, batch_size=2), learning_rate=1e-2, seed=0, pad_token_id=0)
    assert any(not torch.equal(a, b) for a, b in zip(start, trainable, strict=True))
    after = {key: value for key, value in adapted.state_dict().items() if value.shape}
    frozen = [key for key in before if "bias" not in key and "norm" not in key]
    for key in frozen:
        named = next(k for k in after if k.endswith(key) or k.replace("base_layer.", "").endswith(key))
        assert torch.equal(after[named], before[key]), key


def test_the_names_of_ablations_are_recipes():
    assert {recipe.name for recipe in RECIPES.values()} == {"localise", "jola", "ungated", "lofit", "ist", "rst"}


def test_a_learning_rate_that_destroys_the_model_is_not_chosen(folder, tmp_path):
    file = comparison(folder, tmp_path / "rates", methods={"bitfit": {"rates": [1e30, 1e-3]}})
    (row,) = headedit.compare(file, say=quiet).rows
    assert row["learning_rate"] == 1e-3
    file = comparison(folder, tmp_path / "none", methods={"bitfit": {"rates": [1e30, 1e31]}})
    (row,) = headedit.compare(file, say=quiet).rows
    assert "NaN or infinite at every learning rate" in row["error"]


@pytest.mark.parametrize(("given", "wanted"), [(None, 1024), (12, 12)])
def test_every_method_gets_examples_up_to_the_models_context_where_no_length_is_given(
    given, wanted, folder, tmp_path, monkeypatch
):
    def learn(name, lesson, settings, say):
        raise HeadEditError(f"up to {lesson.max_length}")

    monkeypatch.setattr(cells, "learn", learn)
    config = CompareConfig.read(comparison(folder, tmp_path, max_length=given))
    row = cells.run_cell(plan_cells(config, ["lora"])[0], None, config.model.load_tokenizer(), quiet)
    assert row["error"] == f"up to {wanted}"
