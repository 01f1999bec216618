"""A handle shows itself in a notebook in HTML that needs no script, and as text where there is none."""

import re
from xml.etree import ElementTree

import matplotlib.pyplot as plt
import pytest
import torch
from IPython.core.formatters import DisplayFormatter
from tiny import tiny_model

import headedit
from headedit import EditConfig, HeadEditError
from headedit.bench.results import BenchResult
from headedit.edits.gate_set import GateIndex
from headedit.evaluation.reports.report import Baseline, Report, Score
from headedit.interpret.evidence.tokens import HeadWords, TokenChanges
from headedit.interpret.plots.jupyter import html
from headedit.io import notebook
from headedit.runs.history import History
from headedit.runs.pruning_path import Level, PruningPath
from headedit.runs.run import Run
from headedit.runs.selection import Competitor, select
from headedit.runs.stability import Spread
from headedit.training.sweep.rows import SweepGroup, SweepRow


def parsed(edits):
    return ElementTree.fromstring(html(edits).replace("xmlns=", "data-xmlns="))


def rows(table):
    return [["".join(cell.itertext()) for cell in row] for row in table.iter("tr")]


def drawn(path):
    """The cells, (layer, head), that a path of rectangles covers."""
    found = set()
    for head, layer, length in re.findall(r"M(\d+) (\d+)h(\d+)v1h-\d+z", path.get("d")):
        found |= {(int(layer), int(head) + i) for i in range(int(length))}
    return found


@pytest.fixture
def edits(llama):
    llama.config._name_or_path = "/home/me/my-<model>"
    edits = headedit.attach(llama)
    for layer in range(2):
        for head in range(4):
            edits.set_head(layer, head)
    edits.set_head(0, 3, offset=torch.ones(16))
    edits.set_head(1, 0, offset=torch.full((16,), 0.5), scale=0.0)
    return edits


def test_the_summary_shows_model_spec_counts_and_heads(edits):
    page = parsed(edits)
    facts, top = (rows(table) for table in page.iter("table"))
    assert "".join(next(page.iter("div")).itertext()).startswith("HeadEdits on LlamaForCausalLM (my-<model>)")
    assert dict(facts) == {
        "spec": "llama.yaml",
        "layers": "2 of 2, 4 attention heads of width 16",
        "edited heads": "2 of 8",
        "open offset gates": "2 of 8",
        "open scale gates": "1 of 8",
        "parameters in effect": "48",
    }
    assert top[0] == ["layer", "head", "offset gate", "‖g·a‖", "scale gate", "rms(g·m)"]
    assert top[1:] == [["0", "3", "1", "4", "0", "0"], ["1", "0", "1", "2", "1", "1"]]


def test_the_svg_of_a_handle_shows_its_gates(edits):
    with torch.no_grad():
        edits.module.site_edits[1].gates["offset_gate"][2] = -2.2  # open by 0.02
    (svg,) = parsed(edits).iter("svg")
    offset, scale = (
        {path.get("data-gate"): drawn(path) for path in panel.iter("path") if path.get("data-gate")}
        for panel in list(svg)[:2]
    )
    everything = {(layer, head) for layer in range(2) for head in range(4)}
    assert offset == {"0": everything - {(0, 3), (1, 0), (1, 2)}, "0.1": {(1, 2)}, "1": {(0, 3), (1, 0)}}
    assert scale == {"0": everything - {(1, 0)}, "1": {(1, 0)}}


def test_the_summary_is_static_and_takes_the_colours_of_the_page(edits):
    text = html(edits)
    assert not re.search(r"<script|<style|javascript:|\son\w+=|https?://(?!www\.w3\.org/2000/svg)|url\(", text)
    assert "fill='currentColor'" in text
    assert "color:inherit" in text


def test_the_summary_stays_small_for_a_large_model():
    model = tiny_model("llama", num_hidden_layers=80, num_attention_heads=64, hidden_size=64, head_dim=2)
    assert len(html(headedit.attach(model))) < 20_000


def test_heads_that_are_not_edited_are_marked(llama):
    edits = headedit.attach(llama, config=EditConfig(layers=[1], vectors="scale"))
    page = parsed(edits)
    (svg,) = page.iter("svg")
    cells = {path.get("data-gate"): drawn(path) for path in svg.iter("path") if path.get("data-gate")}
    assert cells["none"] == {(0, head) for head in range(4)}
    texts = ["".join(text.itertext()) for text in svg.iter("text")]
    assert "no edited head" in texts
    assert "offset gates" not in texts
    assert "No head is changed" in "".join(page.itertext())


def test_the_summary_names_the_active_adapter_and_its_strength(edits):
    edits.add_adapter("boolq")
    edits.strength = 0.5
    facts = dict(rows(next(parsed(edits).iter("table"))))
    assert facts["adapter"] == "default, active of default, boolq"
    assert facts["strength"] == "0.5"
    edits.detach()
    assert "detached" in html(edits)


def test_a_notebook_gets_html_and_text(edits, monkeypatch):
    shown, _ = DisplayFormatter().format(edits)
    assert shown["text/html"] == html(edits)
    assert shown["text/plain"] == repr(edits)
    monkeypatch.setattr(notebook, "_view", [])
    shown, _ = DisplayFormatter().format(edits)
    assert shown == {"text/plain": repr(edits)}


def titles(page):
    """What the browser shows over the cells of a picture."""
    return [title.text for title in page.iter("title")]


def test_the_numbers_of_a_head_are_shown_over_its_cell(edits):
    found = titles(parsed(edits))
    assert len(found) == 2 * 8
    assert found.count("L0H3\noffset gate 1, ‖g·a‖ 4\nscale gate 0, rms(g·m) 0") == 2
    assert found.count("L1H0\noffset gate 1, ‖g·a‖ 2\nscale gate 1, rms(g·m) 1") == 2


def test_of_a_large_map_the_heads_that_change_something_have_their_numbers():
    model = tiny_model("llama", num_hidden_layers=40, num_attention_heads=32, hidden_size=64, head_dim=2)
    edits = headedit.attach(model, config=EditConfig(gate_init=-10.0))
    edits.set_head(20, 31, offset=torch.ones(2))
    assert {title.split("\n")[0] for title in titles(parsed(edits))} == {"L20H31"}


def gate_map(edits, **options):
    found = headedit.plot.gate_map(edits, **options)
    return found, ElementTree.fromstring(found.svg.replace("xmlns=", "data-xmlns="))


def test_the_interactive_map_shows_tokens_and_effects_over_its_cells(edits):
    pandas = pytest.importorskip("pandas")
    heads = {
        head.name: head
        for head in headedit.leave_one_out(edits, [{"input_ids": [3, 4, 5], "labels": [3, 4, 5]}], progress=False).heads
    }
    changes = TokenChanges([(" cat", 2.0), ("<s>", 1.0)], [("dog", -1.0)])
    words = [HeadWords(head=heads["L0H3"], weights=changes, measured=None, scale=None, obstacle=None)]
    row = {"kind": "attention", "layer": 1, "head": 0, "effect": 0.125, "effect_error": 0.03, "promotes": ["x"]}
    found, svg = gate_map(edits, tokens=words, evidence=pandas.DataFrame([row]))
    texts = {title.split("\n")[0]: title for title in titles(svg)}
    assert texts["L0H3"].endswith("promotes: ' cat', '<s>'\nsuppresses: 'dog'")
    assert texts["L1H0"].endswith("effect 0.125 ± 0.030 nats per token\npromotes: 'x'")
    assert not re.search(r"<script|javascript:|\son\w+=|https?://(?!www\.w3\.org/2000/svg)", found.svg + found.html)


def test_the_interactive_map_is_a_picture_where_svg_and_styles_are_dropped(edits):
    shown, _ = DisplayFormatter().format(headedit.plot.gate_map(edits))
    assert set(shown) == {"text/html", "image/png", "text/plain"}
    assert len(shown["text/plain"]) < 100
    page = ElementTree.fromstring(shown["text/html"].replace("xmlns=", "data-xmlns="))
    picture = page.find("img")
    assert picture.get("style") == "display:none"  # only where styles are kept, and so the SVG is
    assert picture.get("src") == f"data:image/png;base64,{shown['image/png'].strip()}"
    assert picture.get("alt") == "Gates of attention heads"


def test_the_interactive_map_is_saved_as_svg_html_and_png(edits, tmp_path):
    found, svg = gate_map(edits, subtitle="my <model>")
    for name in ("map.svg", "map.html", "map.png"):
        found.save(tmp_path / name)
    assert (tmp_path / "map.svg").read_text() == found.svg
    assert "color-scheme:light dark" in found.svg  # text shows on a dark page too
    assert re.fullmatch(r"Gates of .+: \d+ of 8 offset gates and \d+ of 8 scale gates are open", svg.get("aria-label"))
    assert [text.text for text in svg.findall("text")] == ["Gates of attention heads", "my <model>"]
    page = (tmp_path / "map.html").read_text()
    assert found.html in page
    assert all(part in page for part in ("<html lang='en'>", "<main>", "<h1>Gates of attention heads</h1>"))
    assert plt.imread(tmp_path / "map.png").shape[0] > 200
    with pytest.raises(HeadEditError, match=r"saved as \.svg, \.html or \.png"):
        found.save(tmp_path / "map.pdf")


def results(folder):
    """A result of every kind that is shown in a notebook, and what its text says."""
    order = [GateIndex(0, "offset", 1), GateIndex(0, "scale", 1), GateIndex(1, "offset", 0)]
    levels = [
        Level(order=order[:k], vectors={"0.offset": torch.ones(2, 16)}, loss=1 / k, standard_error=0.01)
        for k in (3, 2, 1)
    ]
    record = {
        "recipe": "localise",
        "seed": 3,
        "base_model": "m",
        "steps": 9,
        "seconds": 4.0,
        "best_eval_loss": 0.25,
        "train_examples": 20,
        "valid_examples": 5,
        "held_out": {"base": 2.0, "edited": 0.25, "examples": 5, "by": "given as the validation set"},
        "open": {kind: {"open": 2, "of": 8} for kind in ("any", "offset", "scale")},
    }
    score = Score(metrics={"accuracy": 0.82}, interval=(0.761, 0.867), unparsed=0, seconds=1.0, tokens=9)
    base = Score(metrics={"accuracy": 0.165}, interval=(0.12, 0.22), unparsed=0, seconds=1.0, tokens=9)
    constant = Baseline(answer="<a>", value=0.3)
    report = Report(
        task="trec", n=200, metric="accuracy", scoring="generation", score=score, base=base, constant=constant,
        majority=None, test=None, left_out=[], settings={},
    )  # fmt: skip
    row = SweepRow(task="arc", fields={"epochs": 2}, seed=1, folder="out", figures={"test loss": 0.31234567})
    group = SweepGroup(
        task="arc", over="seeds", fields={}, runs=2, failed=0, figures={"test loss": Spread.of([1.0, 2.0])}
    )
    bench = BenchResult(
        title="Methods on m",
        settings={},
        rows=[{}] * 3,
        summary=[],
        tables=[("trec", ["method", "score"], [["<lora>", 0.5]])],
    )
    halves = [[Competitor(order[0]), Competitor(order[1])]] * 8
    run = Run(folder, History(None, []), record)
    return [
        (levels[0], "Level(3 gates on 2 heads, validation loss 0.3333 ± 0.01 nats per token)"),
        (
            PruningPath(levels, 2),
            "PruningPath(3 levels from 3 to 1 gates; chosen: 2 gates on 1 head, validation loss 0.5 ± 0.01 nats",
        ),
        (
            run,
            f"Run(localise on m, seed 3; 2 of 8 heads edited; held-out loss 0.25, base 2 nats per token; {folder})",
        ),
        (report, "Report(trec: accuracy 82.0 [76.1, 86.7], base 16.5, constant answer 30.0; n = 200)"),
        (row, "SweepRow(arc, epochs = 2, seed 1: test loss 0.3123)"),
        (group, "SweepGroup(arc, mean of 2 seeds: test loss 1.5)"),
        (bench, "BenchResult(Methods on m: 3 runs; trec)"),
        (select(halves, 8, rate=0.5), "Selection(gates that are sure: "),
    ]


def test_results_are_shown_in_short_as_text_and_as_tables_in_a_notebook(tmp_path):
    for result, text in results(tmp_path):
        shown, _ = DisplayFormatter().format(result)
        assert repr(result).startswith(text)
        assert len(repr(result)) < 300
        assert "\n" not in repr(result)
        page = ElementTree.fromstring(shown["text/html"])
        assert list(page.iter("table"))
        assert "color:inherit" in shown["text/html"]
        assert not re.search(r"<script|<style|url\(", shown["text/html"])


def test_a_run_whose_record_lacks_figures_is_shown_too(tmp_path):
    run = Run(tmp_path, History(None, []), {"recipe": "jola"})
    assert repr(run) == f"Run(jola; {tmp_path})"
    assert str(tmp_path) in run._repr_html_()


def test_a_history_says_its_steps_and_stages():
    rows = [{"step": 1, "stage": "search 1"}, {"step": 9, "stage": "refit"}]
    assert repr(History(None, rows)) == "History(2 rows, steps 1 to 9; search 1, refit)"
    assert repr(History(None, [])) == "History(0 rows)"


def test_the_table_of_a_path_has_the_kept_level_in_bold(tmp_path):
    path = results(tmp_path)[1][0]
    page = ElementTree.fromstring(path._repr_html_())
    bold = [cell.text for cell in page.iter("td") if "bold" in cell.get("style")]
    assert bold == ["2", "1", "0.5", "0.01"]
