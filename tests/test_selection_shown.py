"""How sure the heads are, where it is shown: in the picture, in the report, and in the bench that tests the promise."""

import json
import re

import matplotlib.pyplot as plt
import numpy
import pytest
from tiny import tiny_model
from typer.testing import CliRunner

import headedit
from headedit import HeadEditError
from headedit.bench.plots import recovery
from headedit.bench.recovery.calibration import PROBLEM, RATES, bench_calibration
from headedit.cli import bench, main
from headedit.edits.gate_set import GateIndex, freeze_gates
from headedit.interpret.head_map import HeadMap
from headedit.interpret.plots.selection import gate_name, selection_grid
from headedit.interpret.report import report
from headedit.runs.selection import Competitor, select

TRUE = [GateIndex(0, "offset", 1), GateIndex(0, "scale", 3), GateIndex(1, "offset", 2)]
OTHERS = [GateIndex(1, "scale", 0), GateIndex(1, "scale", 1)]


@pytest.fixture(autouse=True)
def closed_figures():
    yield
    plt.close("all")


def orders(gates, others):
    return [[*(Competitor(gate) for gate in gates), Competitor(others[i % 2])] for i in range(12)]


@pytest.fixture
def run(tmp_path):
    """The folder of a run with 3 gates that are sure and 2 that are interchangeable."""
    edits = headedit.attach(tiny_model("llama"))
    freeze_gates(edits.module, TRUE)
    edits.save_pretrained(tmp_path)
    found = select(orders(TRUE, OTHERS), 64)
    counts = {key: {"open": n, "of": of} for key, (n, of) in edits.count_open().items()}
    record = {"recipe": "localise", "kept_step": 1, "open": counts, "selection": found.to_dict()}
    (tmp_path / "run.json").write_text(json.dumps(record))
    (tmp_path / "history.jsonl").write_text('{"step": 1, "epoch": 1, "stage": "refit", "loss": 1.0}\n')
    return tmp_path


def test_the_picture_frames_the_chosen_gates_and_names_interchangeable_ones(run):
    found = headedit.Run.read(run).selection
    figure = headedit.plot.selection(run)
    offset, scale, ranked = figure.axes[0], figure.axes[1], figure.axes[3]
    assert [len(axis.patches) for axis in (offset, scale)] == [2, 1]
    frame = scale.patches[0]
    assert (frame.get_y() + 0.5, frame.get_x() + 0.5) == (0, 3)
    shown = numpy.ma.filled(scale.get_images()[0].get_array(), numpy.nan)
    assert shown[0, 3] == 1.0
    assert shown[1].tolist() == [0.5, 0.5, 0.0, 0.0]
    assert [text.get_text() for text in ranked.texts] == ["A", "A"]
    assert len(found.groups) == 1
    assert figure.get_suptitle().startswith("3 gates are sure")


def test_the_grid_of_proportions_is_nan_where_there_is_no_head(run):
    heads = HeadMap.of(run)
    grid = selection_grid(heads, headedit.Run.read(run).selection, "attention", "offset")
    assert grid.shape == (2, 4)
    assert grid[0, 1] == grid[1, 2] == 1.0
    assert gate_name(heads, TRUE[1]) == "L0H3"


def test_a_run_without_halves_has_no_picture_of_its_selection(run):
    record = json.loads((run / "run.json").read_text())
    del record["selection"]
    (run / "run.json").write_text(json.dumps(record))
    with pytest.raises(HeadEditError, match="made without halves; fit with bootstrap=20"):
        headedit.plot.selection(run)


def test_the_plot_command_draws_the_selection_too(run):
    outcome = CliRunner().invoke(main.app, ["plot", str(run)])
    assert outcome.exit_code == 0, outcome.output
    assert (run / "selection.png").is_file()


def test_the_report_has_the_figures_and_how_sure_every_head_is(run):
    page = report(run)
    assert "How sure the heads are" in page
    assert re.search(r"bound on false gates, without assumptions</td>\s*<td[^>]*>0\.\d+", page)
    row = page[page.index('id="head-attention-0-3"') :].split("</tr>")[0]
    assert "scale" in row
    swapped = page[page.index('id="head-attention-1-0"') :].split("</tr>")[0]
    assert "L1H1 scale" in swapped
    assert "L1H0 scale" not in swapped
    assert "offset selected" in page


def kept_problem(folder, seed, found):
    """A problem that a bench has finished: its planted gates, and the orders of 10 halves."""
    row = {"shape": "llama", "seed": seed, "halves": 10, "problem": PROBLEM, "planted": [list(gate) for gate in TRUE]}
    row["competitors"] = 128
    row["orders"] = [[[*gate, False] for gate in found]] * 10
    (folder / "calibration").mkdir(exist_ok=True)
    (folder / "calibration" / f"llama-{seed}.json").write_text(json.dumps(row))


def test_the_calibration_counts_false_gates_and_goes_on_after_finished_problems(tmp_path):
    kept_problem(tmp_path, 0, TRUE)
    kept_problem(tmp_path, 1, [*TRUE[:2], OTHERS[0]])
    result = bench_calibration(("llama",), range(2), folder=tmp_path, progress=False)
    at = {row["rate"]: row for row in result.summary}
    assert list(at) == list(RATES)
    assert at[0.1]["false_rate"] == pytest.approx((0 + 1 / 3) / 2)
    assert at[0.1]["false_rate_error"] == pytest.approx(1 / 6)
    assert at[0.1]["power"] == pytest.approx((1 + 2 / 3) / 2)
    assert all(row["bound"] <= row["rate"] * row["chosen"] for row in result.rows)
    figure = recovery.calibration(result.summary, result.rows)
    assert [axis.get_xlabel() for axis in figure.axes] == ["nominal rate of false gates"] * 2


def test_the_calibration_of_an_unknown_shape_is_refused():
    with pytest.raises(HeadEditError, match="There is no shape 'lama'"):
        bench_calibration(("lama",))


def test_the_bench_command_writes_the_calibration_as_table_and_picture(tmp_path):
    kept_problem(tmp_path, 4, TRUE)
    arguments = ["localise", "--calibration", "--shapes", "llama", "--seeds", "1", "--first-seed", "4"]
    outcome = CliRunner().invoke(bench.app, [*arguments, "-o", str(tmp_path)])
    assert outcome.exit_code == 0, outcome.output
    assert {path.name for path in tmp_path.glob("calibration.*")} == {
        "calibration.json",
        "calibration.md",
        "calibration.png",
    }
