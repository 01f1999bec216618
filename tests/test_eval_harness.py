"""Tasks of lm-evaluation-harness on an edited model: the figures are those of the edited and of the bare model."""

import json
import sys
from functools import partial

import pytest
from tiny import randomise
from typer.testing import CliRunner

import headedit
from headedit import HeadEditError
from headedit.demo import MODEL_FOLDER, tasks
from headedit.evaluation.harness.run import run_harness
from headedit.hf.loading import load_model, load_tokenizer

pytest.importorskip("lm_eval")

CHOICE = """
task: tiny_choice
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{prompt}}}}"
doc_to_choice: "{{{{options}}}}"
doc_to_target: 0
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
"""
TEXT = """
task: tiny_text
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{prompt}}}}"
doc_to_target: "{{{{answer}}}}"
generation_kwargs: {{until: ["</s>"], max_gen_toks: 12, do_sample: false}}
metric_list:
  - {{metric: exact_match, aggregation: mean, higher_is_better: true}}
"""
N = 12


@pytest.fixture(scope="module", autouse=True)
def offline(tmp_path_factory):
    """The harness without its own thousands of tasks, and a cache of data sets that goes with the test."""
    import datasets.config
    import lm_eval.tasks

    patch = pytest.MonkeyPatch()
    patch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("datasets")))
    patch.setattr(lm_eval.tasks, "TaskManager", partial(lm_eval.tasks.TaskManager, include_defaults=False))
    yield
    patch.undo()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two task files of the harness over local data: an option or a text for uncued copying."""
    folder = tmp_path_factory.mktemp("tasks")
    answers = [(r["prompt"], r["response"].strip()) for r in tasks.records("copy", N, cued=False, seed=0)]
    rows = [{"prompt": p, "answer": a, "options": [a, " ".join(reversed(a.split()))]} for p, a in answers]
    file = folder / "data.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    (folder / "choice.yaml").write_text(CHOICE.format(file=file))
    (folder / "text.yaml").write_text(TEXT.format(file=file))
    return folder


@pytest.fixture(scope="module")
def edited(tmp_path_factory):
    """The embedded model with edits that matter, its tokenizer, and the folder of the edits."""
    model = load_model(str(MODEL_FOLDER), device="cpu")
    edits = headedit.attach(model)
    randomise(edits, seed=1)
    saved = tmp_path_factory.mktemp("edits")
    edits.save_pretrained(saved)
    return edits, load_tokenizer(str(MODEL_FOLDER)), saved


def figures(report, name="value"):
    return {(row.task, row.metric): getattr(row, name) for row in report.rows}


def test_figures_of_the_harness_are_those_of_the_merged_and_of_the_bare_model(folder, edited):
    edits, tokenizer, saved = edited
    report = run_harness(edits.model, tokenizer, ["tiny_*"], edits=edits, include_path=folder)

    def alone(model):
        return figures(run_harness(model, tokenizer, ["tiny_choice", "tiny_text"], include_path=folder))

    merged = load_model(str(MODEL_FOLDER), device="cpu")
    assert figures(report) == alone(headedit.load(merged, saved).merge_and_unload())
    assert figures(report, "base_value") == alone(load_model(str(MODEL_FOLDER), device="cpu"))
    assert figures(report) != figures(report, "base_value")
    assert {row.n for row in report.rows} == {N}
    for row in report.rows:
        counted = row.paired.only_edited - row.paired.only_base
        assert row.paired.difference == pytest.approx(row.value - row.base_value) == pytest.approx(counted / N)


def test_the_harness_leaves_the_model_as_it_was(folder, edited):
    edits, tokenizer, _ = edited
    edits.model.train()
    run_harness(edits.model, tokenizer, ["tiny_choice"], edits=edits, include_path=folder, limit=1, base=False)
    assert edits.model.training
    assert edits.attached
    edits.model.eval()


def test_a_report_without_a_base_has_one_column_of_figures(folder, edited):
    edits, tokenizer, _ = edited
    report = run_harness(edits.model, tokenizer, ["tiny_choice"], edits=edits, include_path=folder, limit=3, base=False)
    (row,) = report.rows
    assert (row.n, row.base_value, row.paired) == (3, None, None)
    assert report.cells()[0] == ["task", "n", "shots", "metric", "edited"]


def test_the_command_lm_eval_writes_its_report(folder, edited, tmp_path, monkeypatch):
    import typer

    from headedit.cli.lm_eval import lm_eval

    app = typer.Typer()
    app.command()(lm_eval)
    arguments = ["--model", MODEL_FOLDER, "--edits", edited[2], "--tasks", "tiny_choice,tiny_text", "--limit", 4]
    arguments += ["--include-path", folder, "--output", tmp_path / "out", "--device", "cpu"]
    result = CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)
    assert result.exit_code == 0
    report = json.loads((tmp_path / "out" / "lm_eval.json").read_text())
    assert [(row["task"], row["metric"], row["n"]) for row in report["rows"]] == [
        ("tiny_choice", "acc", 4),
        ("tiny_text", "exact_match", 4),
    ]
    assert report["edits"] == str(edited[2])
    written = (tmp_path / "out" / "lm_eval.md").read_text()
    for row in report["rows"]:
        assert f"{row['base_value']:.4f} ± {row['base_stderr']:.4f} | {row['value']:.4f} ±" in written
    assert not [file for file in (tmp_path / "out").iterdir() if file.suffix not in (".json", ".md")]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["tiny_chose"], r"no task 'tiny_chose'\. Did you mean 'tiny_choice'"),
        (["huge_*"], r"no task matching 'huge_\*'"),
        ([], "No task was named"),
    ],
)
def test_an_unknown_task_of_the_harness_is_named(folder, edited, names, message):
    edits, tokenizer, _ = edited
    with pytest.raises(HeadEditError, match=message):
        run_harness(edits.model, tokenizer, names, include_path=folder)


def test_a_task_whose_data_are_missing_is_named(folder, edited, tmp_path):
    edits, tokenizer, _ = edited
    (tmp_path / "gone.yaml").write_text(CHOICE.replace("tiny_choice", "gone").format(file=tmp_path / "gone.jsonl"))
    with pytest.raises(HeadEditError, match=r"lm_eval stopped on gone; are their data available.*FileNotFoundError"):
        run_harness(edits.model, tokenizer, ["gone"], include_path=tmp_path)
    with pytest.raises(HeadEditError, match=r"nowhere: there is no such folder"):
        run_harness(edits.model, tokenizer, ["gone"], include_path=tmp_path / "nowhere")


def test_edits_of_another_model_are_refused(edited, llama):
    edits, tokenizer, _ = edited
    with pytest.raises(HeadEditError, match="are not on this model"):
        run_harness(llama, tokenizer, ["tiny_choice"], edits=edits)


def test_a_missing_harness_is_named_with_its_extra(edited, monkeypatch):
    edits, tokenizer, _ = edited
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(HeadEditError, match=r"pip install 'headedit\[lm-eval\]'"):
        run_harness(edits.model, tokenizer, ["tiny_choice"])
