"""Published figures, and runs next to them."""

import json
import math

import pytest
from typer.testing import CliRunner

from headedit import HeadEditError
from headedit.evaluation.reports.comparison import compare_runs
from headedit.evaluation.reports.published import COLUMNS, published
from headedit.evaluation.reports.report import Baseline, Report, Score
from headedit.evaluation.reports.saved_runs import read_run
from headedit.evaluation.scores.statistics import wilson
from headedit.evaluation.tasks.task_files import packaged_tasks


def score(metrics, n=100, groups=None):
    value = next(iter(metrics.values()))
    interval = wilson(round(value * n), n) if "accuracy" in metrics else (value - 1, value + 1)
    return Score(metrics=metrics, interval=interval, unparsed=0, seconds=1.0, tokens=10, groups=groups or {})


def report(task, metrics, *, base=None, constant=0.5, n=100, groups=None, model="hub/tiny"):
    """What ``headedit eval`` writes."""
    return Report(
        task=task,
        n=n,
        metric=next(iter(metrics)),
        scoring="generation",
        score=score(metrics, n, groups),
        base=score(base, n) if base else None,
        constant=Baseline(answer="true", value=constant),
        majority=None,
        test=None,
        left_out=[],
        settings={"model": model},
    ).to_dict()


@pytest.fixture
def runs(tmp_path):
    """A run of two commonsense tasks with edits, and one of MMLU-Pro domains and a generation task without."""
    (tmp_path / "edited").mkdir()
    for task, accuracy, base in (("boolq", 0.7, 0.6), ("arc_c", 0.9, 0.4)):
        data = report(task, {"accuracy": accuracy}, base={"accuracy": base})
        (tmp_path / "edited" / f"{task}.json").write_text(json.dumps(data))
    (tmp_path / "edited" / "config.json").write_text("{}")
    groups = {"law": (50, 0.2), "math": (100, 0.5)}
    several = [
        report("mmlu_pro", {"accuracy": 0.4}, groups=groups),
        report("mmlu_pro:physics", {"accuracy": 0.8}, groups={"physics": (100, 0.8)}),
        report("xsum", {"bleu": 10.0, "rougeL": 30.0}),
    ]
    (tmp_path / "bare.json").write_text(json.dumps(several))
    return [read_run(tmp_path / "edited"), read_run(tmp_path / "bare.json")]


def line(comparison, method):
    (found,) = [line for line in comparison.lines if line.method == method]
    return found


def test_the_published_figures_each_have_a_source():
    results = published().results
    assert len(results) == len({(result.model, result.method) for result in results}) == 16
    assert {result.source for result in results} <= set(published().sources)
    by_name = {(result.model, result.method): result for result in results}
    jola, lora = by_name["Llama-3.1-8B-Instruct", "JoLA"], by_name["Qwen2.5-7B-Instruct", "LoRA"]
    assert [getattr(jola, name) for name in COLUMNS] == [70.55, 47.00, 17.07, 40.65, 80.54]
    assert [getattr(lora, name) for name in COLUMNS] == [78.28, 46.22, 19.46, 45.34, 82.40]


def test_the_columns_are_of_packaged_tasks():
    tasks = packaged_tasks()
    assert len(COLUMNS) == 5
    for column in COLUMNS.values():
        assert set(column.tasks) <= set(tasks)
        number, unit = column.parts
        assert number == (len(tasks["mmlu_pro"].groups) if unit == "domains" else len(column.tasks))


def test_averages_over_tasks_have_intervals(runs):
    comparison = compare_runs(runs, with_published=False)
    assert [(one.origin, one.model, one.method) for one in comparison.lines] == [
        ("measured", "tiny", "edited"),
        ("measured", "tiny", "edited: base"),
        ("measured", "tiny", "edited: constant answer"),
        ("measured", "tiny", "bare"),
        ("measured", "tiny", "bare: constant answer"),
    ]
    figure = line(comparison, "edited").figures["reasoning"]
    (low_1, high_1), (low_2, high_2) = wilson(70, 100), wilson(90, 100)
    assert figure.value == pytest.approx(80)
    assert figure.interval[0] == pytest.approx(80 - 100 * math.hypot(0.7 - low_1, 0.9 - low_2) / 2)
    assert figure.interval[1] == pytest.approx(80 + 100 * math.hypot(high_1 - 0.7, high_2 - 0.9) / 2)
    assert str(figure).endswith("(2 of 8 tasks)")
    assert line(comparison, "edited: base").figures["reasoning"].value == pytest.approx(50)
    assert line(comparison, "edited: constant answer").figures["reasoning"].value == pytest.approx(50)
    assert set(line(comparison, "edited").figures) == {"reasoning"}


def test_mmlu_pro_is_the_mean_of_its_domains(runs):
    figures = line(compare_runs(runs, with_published=False), "bare").figures
    assert figures["mmlu_pro"].value == pytest.approx(100 * (0.2 + 0.5 + 0.8) / 3)
    below = [share - wilson(round(share * n), n)[0] for share, n in ((0.2, 50), (0.5, 100), (0.8, 100))]
    assert figures["mmlu_pro"].interval[0] == pytest.approx(50 - 100 * math.hypot(*below) / 3)
    assert figures["mmlu_pro"].missing == "3 of 14 domains"
    assert (figures["bleu"].value, figures["bleu"].interval, figures["bleu"].missing) == (10, (9, 11), "1 of 4 tasks")
    assert (figures["rouge_l"].value, figures["rouge_l"].interval) == (30, None)
    assert "bertscore" not in figures


def test_published_figures_are_marked(runs):
    comparison = compare_runs(runs, model="Qwen2.5-7B-Instruct")
    assert [one.origin for one in comparison.lines] == ["published"] * 8 + ["measured"] * 5
    assert all((one.source is None) == (one.origin == "measured") for one in comparison.lines)
    text = comparison.markdown()
    assert "| published | Qwen2.5-7B-Instruct | JoLA | 82.40 | 51.57 | 24.00 | 50.23 | 85.90 |" in text
    assert "| measured | tiny | edited: base | 50.00 [" in text
    assert "arXiv 2502.01179" in text
    assert "62.17" in text, "the caution about the published BoolQ figure"
    assert "Llama-3.1" not in text.split("- Published")[0]


def test_runs_are_compared_task_by_task(runs):
    header, cells = compare_runs(runs, with_published=False).tasks
    assert header == ["task", "metric", "n", "edited", "bare"]
    low, high = wilson(70, 100)
    assert ["boolq", "accuracy", "100", f"70.0 [{100 * low:.1f}, {100 * high:.1f}]", ""] in cells
    assert ["xsum", "bleu", "100", "", "10.00 [9.00, 11.00]"] in cells
    assert ["xsum", "rougeL", "100", "", "30.00"] in cells


def test_the_command_table_prints_the_comparison(runs, tmp_path):
    import typer

    from headedit.cli.table import table

    app = typer.Typer()
    app.command()(table)
    arguments = [tmp_path / "edited", tmp_path / "bare.json", "--published"]
    for name in ("out.md", "out.json"):
        result = CliRunner().invoke(
            app, [*map(str, arguments), "--output", str(tmp_path / name)], catch_exceptions=False
        )
        assert result.exit_code == 0
        assert "published" in result.output
    comparison = compare_runs(runs)
    assert (tmp_path / "out.md").read_text() == comparison.markdown()
    assert json.loads((tmp_path / "out.json").read_text()) == json.loads(json.dumps(comparison.to_dict()))


def test_a_file_that_is_not_a_report_is_named(tmp_path):
    def write(name, data):
        (tmp_path / name).write_text(data if isinstance(data, str) else json.dumps(data))
        return tmp_path / name

    good = report("boolq", {"accuracy": 0.5})
    faults = {
        write("broken.json", "{"): "cannot be read as JSON",
        write("list.json", [3]): "found int",
        write("lacking.json", {key: value for key, value in good.items() if key != "n"}): "it lacks 'n'",
        write("hollow.json", {**good, "score": {}}): "'score' lacks 'metrics' or 'interval'",
        write("twice.json", [good, good]): "second report of 'boolq'",
        write("models.json", [good, report("piqa", {"accuracy": 0.5}, model="other")]): "several models",
        tmp_path / "nowhere": "no such file or folder",
    }
    for file, message in faults.items():
        with pytest.raises(HeadEditError, match=message) as caught:
            read_run(file)
        assert file.name in str(caught.value)
    (tmp_path / "empty").mkdir()
    with pytest.raises(HeadEditError, match="holds no report"):
        read_run(tmp_path / "empty")


def test_a_comparison_that_cannot_be_made_is_refused(runs):
    with pytest.raises(HeadEditError, match="nothing to compare"):
        compare_runs([], with_published=False)
    with pytest.raises(HeadEditError, match="Two runs are named 'bare'"):
        compare_runs([runs[1], runs[1]])
    with pytest.raises(
        HeadEditError, match=r"no published figures of 'Llama-3\.1-8B'\. Did you mean 'Llama-3\.1-8B-Instruct'"
    ):
        compare_runs([], model="Llama-3.1-8B")
