"""``headedit.evaluate``: figures next to their baselines, the same for every batch size, and resumed after a stop."""

import json
import math

import pytest
import torch

import headedit
from headedit import HeadEditError, Source, Task, evaluate
from headedit.cli.main import main
from headedit.demo import MODEL_FOLDER, tasks
from headedit.evaluation.answers import likelihood, predictions, systems
from headedit.evaluation.answers.generation import generate
from headedit.evaluation.reports.report_tables import markdown, tables
from headedit.hf.loading import load_model, load_tokenizer

LETTERS = Task(
    name="letters", prompt="{{ prompt }}", answer="response", template="plain", max_new_tokens=10, num_beams=4
)
CHOICE = Task(
    name="choice",
    prompt="{{ prompt }}",
    answer="right",
    options="choices",
    labels="text",
    template="plain",
    delimiter=" ",
    scoring="loglikelihood",
    group="kind",
)


@pytest.fixture
def model():
    return load_model(str(MODEL_FOLDER), device="cpu")


@pytest.fixture
def edits(model):
    """Edits under which the model can no longer do what it could."""
    edits = headedit.attach(model)
    for layer in range(4):
        for head in range(8):
            edits.set_head(layer, head, scale=0.0)
    return edits


def cued(count, task="sort"):
    return tasks.records(task, count, cued=True, seed=9)


def choices(count):
    """Questions whose options have the same length, so that likelihoods can be compared."""
    rows = []
    for row in cued(count):
        right = row["response"].strip()
        kind = "long" if len(right) > 11 else "short"
        rows.append({"prompt": row["prompt"], "choices": [right[::-1] + " ", right], "right": right, "kind": kind})
    return rows


def run(model, task, **options):
    return evaluate(model, task, progress=False, **options)


def test_a_report_has_edited_and_base_with_intervals_baselines_and_the_paired_test(model, edits):
    rows = cued(16)
    for row in rows[:6]:
        row["response"] = " z z z z"  # what neither says
    train = [{"prompt": "x", "response": " y"}, *rows[6:8], {"prompt": "x", "response": " y"}]
    report = run(model, LETTERS, data=rows, edits=edits, train=train)
    assert (report.n, report.metric, report.scoring) == (16, "accuracy", "generation")
    assert (report.accuracy, report.base_accuracy) == (0.0, 10 / 16)
    assert report.score.interval == pytest.approx((0.0, 0.1936), abs=1e-4)
    assert (report.constant.answer, report.constant.value) == ("z z z z", 6 / 16)
    assert (report.majority.answer, report.majority.value) == ("y", 0.0)
    assert (report.test.only_edited, report.test.only_base) == (0, 10)
    assert report.test.p == pytest.approx(2 / 2**10)
    assert report.test.difference == -10 / 16
    assert report.base.tokens == sum(len(tasks_answer.split()) + 1 for tasks_answer in expected(cued(16)))
    assert report.base.seconds > 0
    assert report.remarks[0] == "The edited model is below the constant answer 'z z z z'."
    assert not model.training
    again = run(model, LETTERS, data=rows)
    assert (again.base, again.test, again.majority) == (None, None, None)


def expected(rows):
    return [row["response"] for row in rows]


@pytest.mark.parametrize("task", [LETTERS, CHOICE], ids=["generation", "loglikelihood"])
def test_predictions_are_the_same_at_batch_sizes_1_7_and_32(task, model, tmp_path):
    rows = choices(40) if task is CHOICE else tasks.records("swap", 40, cued=False, seed=5)
    found = {}
    for size in (1, 7, 32):
        run(model, task, data=rows, batch_size=size, output=tmp_path / f"{size}.json")
        lines = (tmp_path / f"{size}.predictions.jsonl").read_text().splitlines()[1:]
        found[size] = {line["row"]: (line["text"], line["prediction"]) for line in map(json.loads, lines)}
    assert len(found[1]) == 40
    assert found[1] == found[7] == found[32]
    assert len(set(found[1].values())) > 20


def test_a_report_has_every_group_and_the_mean_of_the_groups(model):
    report = run(model, CHOICE, data=choices(30))
    groups = report.score.groups
    assert set(groups) == {"short", "long"}
    assert sum(n for n, _ in groups.values()) == 30
    assert report.accuracy == pytest.approx(sum(n * value for n, value in groups.values()) / 30)
    assert report.score.mean_of_groups == pytest.approx((groups["short"][1] + groups["long"][1]) / 2)
    titles = [title for title, _, _ in tables([report])]
    assert titles == ["Evaluation", "choice by group", "Answers and time"]


def test_answers_that_cannot_be_parsed_are_counted(model):
    task = Task(name="t", prompt="{{ prompt }}", answer="right", options=["a a a a", "x"], template="plain")
    rows = [{"prompt": p, "right": "x"} for p in ("copy : a a a a =", "copy : b b b b =", "copy : c c c c =")]
    report = run(model, task, data=rows)
    assert (report.accuracy, report.score.unparsed) == (0.0, 2)
    assert "2 of 3 answers of the model could not be parsed." in report.remarks


def test_generated_text_is_measured_by_its_metrics(model, edits):
    task = Task(**{**vars(LETTERS), "name": "text", "metrics": ["bleu", "chrf", "accuracy"]})
    rows = [{**row, "response": [row["response"], " z z z z z"]} for row in cued(12)]
    report = run(model, task, data=rows, edits=edits)
    assert report.metric == "bleu"
    assert report.base.metrics["bleu"] == pytest.approx(100)
    assert report.base.metrics["accuracy"] == 1.0
    assert report.base.interval == pytest.approx((100, 100))
    assert report.score.metrics["bleu"] < 20
    assert report.test.p == pytest.approx(2 / 301)
    assert "| text: chrf | 12 |" in markdown([report])


def test_a_stopped_evaluation_is_resumed(model, edits, tmp_path, monkeypatch):
    rows, options = tasks.records("swap", 20, cued=False, seed=5), {"edits": edits, "batch_size": 4}
    whole = run(model, LETTERS, data=rows, output=tmp_path / "whole.json", **options)
    stopped = tmp_path / "stopped.json"
    kept = tmp_path / "stopped.predictions.jsonl"
    written = []

    def append(file, batch):
        if len(written) == 7:  # in the middle of the base
            raise KeyboardInterrupt
        written.append(len(batch))
        predictions.append(file, batch)

    monkeypatch.setattr(systems, "append", append)
    with pytest.raises(KeyboardInterrupt):
        run(model, LETTERS, data=rows, output=stopped, **options)
    assert not stopped.exists()
    assert len(kept.read_text().splitlines()) == 1 + 7 * 4
    with kept.open("a") as file:
        file.write('{"system": "base", "row": 3, "wh')  # as a kill leaves it
    monkeypatch.setattr(systems, "append", lambda *a: (written.append(0), predictions.append(*a)))
    again = run(model, LETTERS, data=rows, output=stopped, **options)
    assert len(written) == 7 + 3
    assert len(kept.read_text().splitlines()) == 1 + 2 * 20
    for figure in ("n", "constant", "test"):
        assert getattr(again, figure) == getattr(whole, figure)
    assert (again.score.metrics, again.base.metrics) == (whole.score.metrics, whole.base.metrics)
    assert again.base.tokens == whole.base.tokens
    run(model, LETTERS, data=rows, output=stopped, **options)
    assert len(written) == 10  # nothing is left to do


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_beams": 1}, "task was .*'num_beams': 4.* is .*'num_beams': 1"),
        ({"data": cued(4)}, "examples was '"),
        ({"edits": True}, "edits was None, is '"),
    ],
)
def test_predictions_of_another_evaluation_are_not_mixed_in(change, message, model, tmp_path):
    options = {"data": cued(3), "output": tmp_path / "r.json"}
    run(model, LETTERS, **options)
    before = (tmp_path / "r.predictions.jsonl").read_bytes()
    if "edits" in change:
        change = {"edits": headedit.attach(model)}
    with pytest.raises(HeadEditError, match=f"holds predictions of another evaluation: {message}"):
        run(model, LETTERS, **{**options, **change})
    assert (tmp_path / "r.predictions.jsonl").read_bytes() == before


def test_a_model_that_is_no_better_than_a_constant_gets_a_remark(model):
    rows = [{"prompt": "copy : a b c d =", "response": " a b c d"}] * 3
    report = run(model, LETTERS, data=[*rows, {"prompt": "copy : a b =", "response": " x"}])
    assert (report.accuracy, report.constant.value) == (0.75, 0.75)
    assert report.remarks == ["The model cannot be distinguished from the constant answer 'a b c d'."]
    assert run(model, LETTERS, data=cued(20)).remarks == []


def test_the_task_says_how_it_is_scored(model, tmp_path, monkeypatch):
    rows = tasks.records("swap", 30, cued=False, seed=5)
    tokenizer = load_tokenizer(str(MODEL_FOLDER))
    texts = {}
    for beams in (1, 4):
        run(model, LETTERS, data=rows, num_beams=beams, output=tmp_path / f"{beams}.json")
        lines = map(json.loads, (tmp_path / f"{beams}.predictions.jsonl").read_text().splitlines()[1:])
        texts[beams] = [line["text"] for line in sorted(lines, key=lambda line: line["row"])]
        prompts = [row["prompt"] for row in rows]
        options = {"max_new_tokens": 10, "num_beams": beams, "progress": False}
        assert texts[beams] == generate(model, tokenizer, prompts, **options)
    assert texts[1] != texts[4]
    asked = []

    def option_scores(model, tokenizer, questions, **options):
        asked.append((questions[0][1], options["normalise"]))
        return likelihood.option_scores(model, tokenizer, questions, **options)

    monkeypatch.setattr("headedit.evaluation.answers.answers.option_scores", option_scores)
    rows = choices(2)
    run(model, CHOICE, data=rows, normalise="bytes")
    assert asked == [([f" {text}" for text in rows[0]["choices"]], "bytes")]


def test_an_evaluation_saves_its_report_and_its_predictions(model, tmp_path):
    report = run(model, CHOICE, data=choices(6), output=tmp_path / "deep" / "choice.json")
    data = json.loads((tmp_path / "deep" / "choice.json").read_text())
    assert data["score"]["metrics"] == report.score.metrics
    assert data["score"]["examples_per_second"] == pytest.approx(6 / report.score.seconds)
    assert data["settings"]["task"]["scoring"] == "loglikelihood"
    assert data["settings"]["dtype"] == "float32"
    assert (tmp_path / "deep" / "choice.md").read_text() == markdown([report])
    line = json.loads((tmp_path / "deep" / "choice.predictions.jsonl").read_text().splitlines()[1])
    assert len(line["scores"]) == 2
    assert all(math.isfinite(score) and score < 0 for score in line["scores"])


def test_a_fault_of_an_evaluation_is_named(model, edits, tmp_path):
    long = [{"prompt": "a =", "response": "b"}, {"prompt": "a " * 60, "response": "b"}]
    with pytest.raises(HeadEditError, match=r"record 2 has 61 tokens; with 10 new ones it does not fit .* of 64"):
        run(model, LETTERS, data=long)
    report = run(model, LETTERS, data=long, skip_broken=True)
    assert (report.n, len(report.left_out)) == (1, 1)
    assert report.remarks[-1].startswith("1 records are left out, the first: record 2 has 61 tokens")
    with pytest.raises(HeadEditError, match="no prompt can be read, the first: record 1"):
        run(model, LETTERS, data=long[1:], skip_broken=True)
    with pytest.raises(HeadEditError, match="letters: there is nothing to evaluate: the split is empty"):
        run(model, LETTERS, data=[])
    with pytest.raises(HeadEditError, match=r"names the metric 'blue'\. Did you mean 'bleu'"):
        run(model, LETTERS, data=long, metrics=["blue"])
    other = load_model(str(MODEL_FOLDER), device="cpu")
    with pytest.raises(HeadEditError, match="edits: are not on this model"):
        run(other, LETTERS, data=long, edits=edits)
    (tmp_path / "r.predictions.jsonl").write_text("something\n")
    with pytest.raises(HeadEditError, match=r"r\.predictions\.jsonl, line 1: is not a prediction"):
        run(model, LETTERS, data=cued(2), output=tmp_path / "r.json")


def test_the_command_evaluates_tasks_from_a_folder(tmp_path, capsys):
    for name in ("one", "two"):
        (tmp_path / f"{name}.yaml").write_text(
            'prompt: "{{ prompt }}"\nanswer: response\ntemplate: plain\nmax_new_tokens: 10\n'
            f"data: {{path: ., folder: {name}, train: train}}\n"
        )
        (tmp_path / name).mkdir()
        for split in ("train", "test"):
            (tmp_path / name / f"{split}.json").write_text(json.dumps(cued(5, "sort" if name == "one" else "copy")))
    arguments = ["eval", "--model", MODEL_FOLDER, "--device", "cpu", "--limit", 4, "--set", "num_beams=2"]
    arguments += ["--tasks", f"{tmp_path / 'one.yaml'},{tmp_path / 'two.yaml'}"]
    with pytest.raises(SystemExit) as caught:
        main([str(a) for a in [*arguments, "--output", tmp_path / "out"]])
    assert caught.value.code == 0
    printed = capsys.readouterr().out
    assert "100.0 [51.0–100.0]" in printed
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {f"{task}.{end}" for task in ("one", "two") for end in ("json", "md", "predictions.jsonl")} | {
        "summary.md"
    }
    report = json.loads((tmp_path / "out" / "one.json").read_text())
    assert (report["n"], report["settings"]["task"]["num_beams"], report["score"]["value"]) == (4, 2, 1.0)
    assert report["majority"] is not None
    for wrong, message in (
        (["--output", tmp_path / "r.json"], "2 tasks need a folder, not one file"),
        (["--scoring", "loglikelihood"], "loglikelihood needs options"),
    ):
        with pytest.raises(SystemExit) as caught:
            main([str(a) for a in [*arguments, *wrong]])
        assert caught.value.code == 2
        assert message in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["eval", "--model", str(MODEL_FOLDER)])
    assert "Give --tasks, --data, or both. Tasks: arc_c, arc_e, boolq" in capsys.readouterr().err


def test_the_source_of_a_task_can_be_given_in_python(model, tmp_path):
    (tmp_path / "rows_test.json").write_text(json.dumps(cued(3)))
    task = Task(**{**vars(LETTERS), "data": Source(path=str(tmp_path / "rows_{split}.json"))})
    tokenizer = load_tokenizer(str(MODEL_FOLDER))
    assert evaluate(model, task, tokenizer=tokenizer, progress=False).accuracy == 1.0


def test_options_of_several_lines_that_begin_alike_are_different_answers(model):
    code = Task(**{**vars(CHOICE), "name": "code", "group": None})
    rows = [
        {"prompt": row["prompt"], "choices": [f"{right}\nb", f"{right}\na"], "right": f"{right}\n{end}"}
        for row in cued(6)
        for right, end in [(row["response"].strip(), "ab"[len(row["prompt"]) % 2])]
    ]
    report = run(model, code, data=[*rows, {**rows[0], "right": rows[0]["choices"][0]}])
    chosen = [{**row, "right": choice} for row in rows[:1] for choice in row["choices"]]
    assert run(model, code, data=chosen).accuracy == 0.5
    assert report.constant_accuracy < 1


def test_likelihoods_that_are_nan_stop_an_evaluation_instead_of_choosing_the_first_option(model):
    with torch.no_grad():
        model.get_output_embeddings().weight.fill_(math.nan)
    with pytest.raises(
        HeadEditError, match=r"record \d: the log-likelihood of an option is NaN.*overflows in its dtype"
    ):
        run(model, CHOICE, data=choices(3))


@pytest.mark.parametrize("separator", ["\u2028", "\x85"])
def test_predictions_of_texts_with_the_line_separators_of_unicode_are_resumed(separator, model, tmp_path):
    rows = [{**row, "response": f"a{separator}b"} for row in cued(3)]
    report = run(model, LETTERS, data=rows, output=tmp_path / "report.json")
    kept = (tmp_path / "report.predictions.jsonl").read_bytes()
    assert run(model, LETTERS, data=rows, output=tmp_path / "report.json").score == report.score
    assert (tmp_path / "report.predictions.jsonl").read_bytes() == kept
    assert [p.answers for p in predictions.read_predictions(tmp_path / "report.predictions.jsonl")] == [
        [f"a{separator}b"]
    ] * 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": "8"}, "batch_size: found the text '8', expected a whole number"),
        ({"batch_size": None}, "batch_size: found None, expected a whole number"),
        ({"batch_size": 2.5}, "batch_size: found 2.5"),
        ({"batch_size": 0}, "batch_size: found 0, expected 1 or more"),
        ({"limit": "3"}, "limit: found the text '3'"),
        ({"limit": -1}, "limit: found -1, expected 1 or more"),
        ({"seed": "a"}, "seed: found the text 'a'"),
        ({"output": 5}, r"output: found 5, expected a JSON file, such as 'report\.json'"),
        ({"data": 5}, "data: found 5, expected records, or where they are"),
    ],
)
def test_an_argument_of_evaluate_of_a_wrong_type_is_named(arguments, message, model):
    with pytest.raises(HeadEditError, match=message):
        run(model, LETTERS, **{"data": cued(2), **arguments})
