"""A run as one HTML file: what it says, that it loads nothing, and that it works in a browser, by mouse and by keys."""

import base64
import csv
import dataclasses
import io
import json
import math
import os
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import matplotlib.pyplot as plt
import pytest
import torch
from tiny import tiny_model
from tokenizers_tiny import CHATML, byte_level
from zoo import zoo_model

import headedit
from headedit import EditConfig, HeadEditError
from headedit.cli.main import main
from headedit.demo import MODEL_FOLDER, tasks
from headedit.edits.gate_set import GateIndex
from headedit.hf.loading import load_model, load_tokenizer
from headedit.interpret import plots
from headedit.interpret.report import Table, report
from headedit.interpret.report.columns import columns_of, head_rows
from headedit.interpret.report.drawing import DIM, lifted_colours, luminance, svg_of
from headedit.interpret.report.folder import RunFolder, two_digits
from headedit.interpret.report.heads import measures
from headedit.interpret.report.origin import origin
from headedit.runs.pruning_path import Level, PruningPath

pandas = pytest.importorskip("pandas")
pytest.importorskip("nnsight")

OPEN = [(0, 2), (1, 5), (2, 0), (2, 7), (3, 3)]
RECORDS = tasks.records("reverse", 8, cued=False, seed=1)
NASTY = ['<b>"x"</b>', "</script><script>alert(1)</script>", " a", "&amp;", "'"]
SETTINGS = {"recipe": "jola", "seed": 3, "settings": {"epochs": 2, "scale_lr": 0.05}, "steps": 1200, "seconds": 7.4}
RECORD = {**SETTINGS, "train_examples": 1200, "valid_examples": 9, "best_eval_loss": 0.125}


def write_run(edits, folder, **record):
    edits.save_pretrained(folder)
    (folder / "run.json").write_text(json.dumps({**RECORD, **record}))
    gates = [{"offset": [0.5, 0.1]}]
    common = {"open_offset": 4.0, "open_scale": 4.0, "gates": gates}
    rows = [{"step": i, "epoch": i, "loss": 1 / i, **common} for i in (1, 2, 3)]
    (folder / "history.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="module")
def edits():
    """The embedded model with an offset on one head, a scale on another, and both on three."""
    handle = headedit.attach(load_model(str(MODEL_FOLDER), device="cpu"), config=EditConfig(gate_init=-10.0))
    first, second, *others = OPEN
    handle.set_head(*first, offset=torch.linspace(-3, 3, 16))
    handle.set_head(*second, scale=0.2)
    for place in others:
        handle.set_head(*place, offset=torch.linspace(2, -2, 16).cos(), scale=0.2)
    return handle


@pytest.fixture(scope="module")
def frame(edits):
    tokenizer = load_tokenizer(str(MODEL_FOLDER))
    found = headedit.evidence(edits, RECORDS, tokenizer=tokenizer, steps=1, batch_size=20, progress=False)
    found.at[2, "promotes"] = NASTY
    return found


@pytest.fixture(scope="module")
def run(edits, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "<my> & run"
    return write_run(edits, folder, controls={"random": {"gates": 7, "validation_loss": 0.5, "metric": None}})


@pytest.fixture(scope="module")
def text(run, frame):
    return report(run, evidence=frame, tables=[Table(title="Eval", header=["task", "score"], cells=[["a<b", "0.5"]])])


class Page(HTMLParser):
    """The elements of a page, (name, attributes, text in it), and the texts of the cells of every table."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.open, self.tables = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        element = {"tag": tag, "text": "", **dict(attributes)}
        self.elements.append(element)
        if tag not in ("meta", "link", "img", "input"):
            self.open.append(element)
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.tables[-1][-1].append(element)

    def handle_endtag(self, tag):
        while self.open.pop()["tag"] != tag:
            pass

    def handle_data(self, data):
        for element in self.open:
            element["text"] += data

    def all(self, **wanted):
        return [e for e in self.elements if all(e.get(key) == value for key, value in wanted.items())]

    def heads(self):
        """The rows of the table of heads, by the labels of its columns."""
        (table,) = [t for t in self.tables if t[0][0].get("data-form")]
        names = [cell["text"] for cell in table[0]]
        return [dict(zip(names, row, strict=True)) for row in table[1:]]


def test_the_page_shows_the_facts_and_tables_of_the_run(text):
    page = Page(text)
    told = dict(zip((e["text"] for e in page.all(tag="dt")), (e["text"] for e in page.all(tag="dd")), strict=True))
    expected = {
        "base model": "model (LlamaForCausalLM)",
        "recipe": "jola",
        "seed": "3",
        "edited heads": "5 of 32",
        "open offset gates": "4 of 32",
        "open scale gates": "4 of 32",
        "parameters in effect": "128",
        "examples": "1,200 to train on, 9 to validate on",
        "validation loss": "0.1250 nats per token",
        "time": "7 s",
    }
    assert expected.items() <= told.items()
    cells = [[cell["text"] for cell in row] for table in page.tables for row in table]
    assert ["scale_lr", "0.05"] in cells
    assert ["gate_init", "-10"] in cells
    assert ["random", "7", "0.5", "–"] in cells
    assert ["a<b", "0.5"] in cells
    assert [e["text"] for e in page.all(tag="h1")] == ["<my> & run"]
    titles = [e["text"].partition(" ")[0] for e in page.all(tag="figcaption")]
    assert titles == ["Gates", "Effect", "Agreement", "History"]


def test_every_head_has_a_row_with_its_numbers_and_tokens(text, frame):
    rows = Page(text).heads()
    assert len(rows) == 32
    named = {row["head"]["text"]: row for row in rows}
    labels = {"effect": "effect", "gate_offset": "offset gate", "share": "share", "probe_accuracy": "probe accuracy"}
    for known in frame.to_dict("records"):
        row = named[f"L{known['layer']}H{known['head']}"]
        for key, label in labels.items():
            assert float(row[label]["data-order"]) == pytest.approx(known[key], rel=1e-8)
            assert float(row[label]["text"].partition(" ")[0]) == pytest.approx(known[key], rel=0.05)
        if known["promotes"] is not None:
            assert row["promotes"]["text"] == "".join(known["promotes"])
    edits = [named[f"L{layer}H{head}"]["edit"]["text"] for layer, head in OPEN]
    assert edits == ["offset", "scale", *["offset and scale"] * 3]


def test_the_table_begins_with_the_edited_heads_by_their_effect(text, frame):
    rows = Page(text).heads()
    assert [row["edit"]["text"] == "none" for row in rows] == [False] * 5 + [True] * 27
    effects = frame.set_index(["layer", "head"])["effect"]
    first = sorted(OPEN, key=lambda place: -effects[place])
    assert [row["head"]["text"] for row in rows[:5]] == [f"L{layer}H{head}" for layer, head in first]


def test_an_effect_has_as_many_digits_as_its_error_and_other_numbers_have_two(text, frame):
    for row in Page(text).heads()[:5]:
        value, error = row["effect"]["text"].split(" ± ")
        assert len(value.partition(".")[2]) == len(error.partition(".")[2])
        assert len(error.replace(".", "").lstrip("0")) == 2
        for name in ("‖g·a‖", "contribution", "probe accuracy"):
            assert len(row[name]["text"].replace(".", "").lstrip("0")) <= 2
    assert two_digits(123.4) == "120"
    assert two_digits(0.00371) == "0.0037"


def test_the_table_of_heads_can_be_saved_as_csv_with_every_digit(text, frame):
    page = Page(text)
    (link,) = page.all(tag="a", id="csv")
    assert link["download"] == "<my> & run-heads.csv"
    head, _, payload = link["href"].partition(",")
    assert head == "data:text/csv;charset=utf-8;base64"
    lines = list(csv.DictReader(io.StringIO(base64.b64decode(payload).decode())))
    assert [line["name"] for line in lines] == [row["head"]["text"] for row in page.heads()]
    named = {(int(line["layer"]), int(line["head"])): line for line in lines}
    for known in frame.to_dict("records"):
        line = named[known["layer"], known["head"]]
        for key in ("effect", "effect_error", "contribution", "probe_accuracy"):
            assert float(line[key]) == pytest.approx(known[key], rel=1e-8)
        assert line["promotes"] == ("" if known["promotes"] is None else json.dumps(known["promotes"]))


def test_the_map_has_a_cell_per_head_with_a_colour_for_every_measure(text, frame):
    page = Page(text)
    measures = [e["text"] for e in page.all(tag="option")]
    assert measures[:2] == ["edit", "effect"]
    cells = [e for e in page.all(tag="td") if "data-styles" in e]
    styles = [cell["data-styles"].split() for cell in cells]
    effects = frame["effect"].tolist()
    assert [style[0] for style in styles] == [cell["class"] for cell in cells]
    assert {style[0] for style in styles} == {"t-none", "t-offset", "t-scale", "t-both"}
    top = max(range(32), key=lambda i: abs(effects[i]))
    assert styles[top][1] in ("d5", "d-5")
    for style, effect in zip(styles, effects, strict=True):
        level = int(style[1].removeprefix("d"))
        assert (level > 0, level < 0) == (effect > 0, effect < 0)


def test_the_page_loads_nothing_and_escapes_its_input(text):
    page = Page(text)
    assert len(page.all(tag="script")) == 1
    (row,) = [row for row in page.heads() if row["head"]["text"] == "L0H2"]
    assert all(token in row["promotes"]["text"] for token in NASTY)
    addresses = [e[key] for e in page.elements for key in ("src", "href") if key in e]
    assert all(address.startswith(("#", "data:")) for address in addresses)
    assert "http://" not in text.replace("http-equiv", "")
    assert "https://" not in text
    (policy,) = page.all(**{"http-equiv": "Content-Security-Policy"})
    assert policy["content"].startswith("default-src 'none'; img-src data:;")


def test_the_report_of_a_run_without_evidence_shows_its_edits(run):
    page = Page(report(run))
    rows = page.heads()
    assert list(rows[0]) == ["head", "edit", "offset gate", "scale gate", "‖g·a‖", "‖g·m‖"]
    assert [row["head"]["text"] for row in rows[:5]] == [f"L{layer}H{head}" for layer, head in OPEN]
    assert rows[1]["‖g·m‖"]["text"] == "3.2"  # sqrt(16) * 0.8


def test_the_report_of_a_hybrid_has_a_map_per_kind_and_no_column_without_values(tmp_path):
    config = EditConfig(sites=["attention", "linear"], gate_init=-10.0, vectors="offset")
    handle = headedit.attach(zoo_model("qwen3_5_text"), config=config)
    page = Page(report(write_run(handle, tmp_path)))
    rows = page.heads()
    assert {row["kind"]["text"] for row in rows} == {"attention", "linear"}
    assert "scale gate" not in rows[0]
    assert len([e for e in page.all(tag="td") if "data-styles" in e]) == len(rows)
    assert len([e for e in page.all(tag="table") if e.get("class") == "map"]) == 2
    assert page.all(tag="td", **{"class": "missing"})


def test_the_report_shows_path_seeds_config_and_data_if_the_run_has_them(edits, tmp_path):
    spread = {"mean": 0.5, "std": 0.1, "values": [0.4, 0.6]}
    stability = {"seeds": [0, 1], "heads": [5, 5], "jaccard": 1.0, "chance": 0.08, "validation_loss": spread}
    folder = write_run(edits, tmp_path, stability={**stability, "metric": None})
    gates = [GateIndex(0, "offset", 2), GateIndex(1, "scale", 5)]
    PruningPath([Level(order=gates[:n], vectors={"0.offset": torch.ones(1, 16)}, loss=1 / n) for n in (2, 1)], 2).save(
        folder
    )
    (folder / "run.yaml").write_text("model: {name: <tiny>}\ndata: {train: /home/me/<mine>.jsonl, valid: 0.1}")
    (folder / "data.json").write_text(json.dumps({"train": {"read": 12345}}))
    page = Page(report(folder))
    assert "Seeds" not in [e["text"].partition(" ")[0] for e in page.all(tag="figcaption")]
    write_run(edits, folder / "seed-1")
    page = Page(report(folder))
    titles = [e["text"].partition(" ")[0] for e in page.all(tag="figcaption")]
    assert titles == ["Gates", "Effect", "Pruning", "Seeds", "History"]
    cells = [[cell["text"] for cell in row] for table in page.tables for row in table]
    assert ["Jaccard index of the heads, mean of the pairs", "1"] in cells
    assert ["validation loss", "0.50 ± 0.10 (0.4, 0.6)"] in cells
    assert ["train.read", "12,345"] in cells
    assert page.all(tag="pre")[0]["text"] == (folder / "run.yaml").read_text()
    told = dict(zip((e["text"] for e in page.all(tag="dt")), (e["text"] for e in page.all(tag="dd")), strict=True))
    assert told["data"] == "1,200 to train on (<mine>.jsonl); 9 to validate on"
    assert told["train again with"] == f"headedit train {folder.name}/run.yaml"


def test_a_folder_or_evidence_that_cannot_be_reported_is_refused(run, frame, edits, tmp_path):
    with pytest.raises(HeadEditError, match="no edits to report on"):
        report(tmp_path)
    edits.save_pretrained(tmp_path / "bare")
    with pytest.raises(HeadEditError, match=r"no history\.jsonl.*headedit plot"):
        report(tmp_path / "bare")
    write_run(edits, tmp_path / "bare")
    (tmp_path / "bare" / "run.json").write_text("[")
    with pytest.raises(HeadEditError, match=r"run\.json: not valid JSON") as damaged:
        report(tmp_path / "bare")
    assert str(damaged.value).count("run.json") == 1
    write_run(edits, tmp_path / "bare")
    (tmp_path / "bare" / "history.jsonl").write_text("")
    with pytest.raises(HeadEditError, match="no step was logged"):
        report(tmp_path / "bare")
    other = frame.copy()
    other.loc[0, "open"] = True
    with pytest.raises(HeadEditError, match="on other edits"):
        report(run, evidence=other)
    for wrong in (frame[:5], frame.drop(columns="open"), "frame"):
        with pytest.raises(HeadEditError, match="evidence: "):
            report(run, evidence=wrong)


STYLE = (Path(headedit.__file__).parent / "interpret" / "report" / "page.css").read_text()
SCHEMES = [dict(re.findall(r"--(\w+): (#\w{6})", rule)) for rule in re.findall(r":root \{[^}]*\}", STYLE)]


def contrast(first, second):
    """As WCAG 2 defines it, from 1 to 21."""
    dark, light = sorted((luminance(first), luminance(second)))
    return (light + 0.05) / (dark + 0.05)


def hexadecimal(colour):
    """``#rrggbb`` of ``rgb(...)``."""
    return "#" + "".join(f"{int(part):02x}" for part in re.findall(r"\d+", colour)[:3])


def test_the_share_of_a_head_without_an_output_has_the_last_colour_of_the_map(run, frame):
    changed = frame.copy()
    silent = changed.index[changed["open"]][0]
    changed.loc[silent, "share"] = math.inf
    rows = head_rows(RunFolder.read(run).source, changed)
    (measure,) = [found for found in measures(rows, columns_of(rows)) if found.label == "share"]
    assert measure.styles[tuple(changed.loc[silent, ["kind", "layer", "head"]])] == "s10"
    assert measure.legend[-1].text == two_digits(frame.drop(silent)["share"].max())
    best = max(Page(report(run, evidence=changed)).heads(), key=lambda row: row["share"]["data-order"] == "inf")
    assert best["share"]["text"] == "inf"


@pytest.mark.parametrize("colours", SCHEMES, ids=["light", "dark"])
def test_text_has_contrast_on_every_background_of_the_page(colours):
    pairs = [(text, ground) for text in ("text", "soft", "link") for ground in ("page", "panel")]
    pairs += [("text", "mark"), ("soft", "mark")]
    low = {pair: found for pair in pairs if (found := contrast(*map(colours.get, pair))) < 4.5}
    assert len(SCHEMES) == 2
    assert low == {}


def test_colours_of_lines_stand_out_from_the_dark_page():
    page = SCHEMES[1]["page"]
    assert lifted_colours()
    assert all(contrast(lifted, page) >= 3 for lifted in lifted_colours().values())
    assert (DIM + 0.05) / (luminance(page) + 0.05) >= 3


def test_pictures_take_their_colours_from_the_page_and_hold_no_slab(text):
    page = Page(text)
    drawn = page.all(tag="svg")
    assert len(drawn) == 4
    assert all(picture["role"] == "img" and picture["aria-label"] for picture in drawn)
    assert not page.all(tag="img")
    assert "<style" not in text[text.index("<body") :]
    inside = text[text.index("<svg") : text.rindex("</svg>")]
    assert "color-mix(in srgb, var(--page) 100%, var(--text))" in inside
    assert not re.search(r"(?:fill|stroke): #(?:ffffff|ececec|d9d9d9|332288)\b", inside)
    ids = [e["id"] for e in page.elements if "id" in e]
    assert len(ids) == len(set(ids))
    used = re.findall(r"url\(#([^)]+)\)", inside) + [e["href"][1:] for e in page.all(tag="use")]
    assert set(used) <= set(ids)


def test_a_drawing_keeps_black_and_white_letters_on_the_cells_of_a_heatmap(tmp_path):
    handle = headedit.attach(tiny_model("llama", num_attention_heads=4, num_key_value_heads=2))
    figure = plots.groups(handle)
    letters = [text for axis in figure.axes for text in axis.texts]
    drawn = svg_of(figure, "one", '"<mine>"')
    assert letters
    assert re.search(r"fill: #(?:000001|fffffe)", drawn)
    assert 'aria-label="&quot;&lt;mine&gt;&quot;"' in drawn


def test_a_drawing_keeps_every_digit_of_its_words_and_two_of_its_coordinates():
    figure, axis = plt.subplots()
    axis.set_title("0.0035 ± 0.0021, λ = 0.001 nats")
    axis.plot([0, 1 / 3], [0, 1 / 7])
    drawn = svg_of(figure, "one", "numbers")
    plt.close(figure)
    assert ">0.0035 ± 0.0021, λ = 0.001 nats</text>" in drawn
    assert not re.search(r"\d\.\d{3,}[ ,\")]", re.sub(r">[^<>]+<", "><", drawn))


def test_every_control_region_and_table_of_the_page_has_a_name(text):
    page = Page(text)
    labelled = {e["for"] for e in page.all(tag="label") if "for" in e}
    for element in page.elements:
        if element["tag"] in ("table", "nav") or element.get("role") in ("region", "img"):
            assert element.get("aria-label") or element.get("aria-labelledby") in {e.get("id") for e in page.elements}
        if element["tag"] in ("a", "button", "summary", "th"):
            assert element.get("aria-label") or element["text"].strip()
        if element["tag"] == "select":
            assert element["id"] in labelled
    names = [e["aria-label"] for e in page.all(role="region")]
    assert len(names) == len(set(names))
    assert page.all(role="status")
    assert [e["tag"] for e in page.elements if re.fullmatch("h[1-3]", e["tag"])][:2] == ["h1", "h2"]
    assert page.all(tag="html")[0]["lang"] == "en"


def test_a_picture_and_a_table_of_one_title_are_told_apart():
    page = Page(report(Path(__file__).parents[1] / "docs" / "gallery" / "reverse"))
    titles = [e["text"] for e in page.elements if e["tag"] == "h3"]
    names = [e["aria-label"] for e in page.all(role="region")]
    assert sum("How sure the heads are" in name for name in names) == 2, titles
    assert len(names) == len(set(names))


def test_what_is_wider_than_a_phone_lies_in_an_area_that_scrolls_by_keys_too(text):
    page = Page(text)
    wide = [e for e in page.elements if e["tag"] == "svg" and int(e["width"]) > 420]
    assert wide
    for picture in re.findall(r"<div[^>]*>(?=<svg)", text):
        assert 'class="scroll"' in picture
        assert 'tabindex="0"' in picture
    assert not re.search(r'style="[^"]*\bwidth:', re.sub(r"<svg.*?</svg>", "", text, flags=re.DOTALL))


def test_the_page_says_what_the_run_is_and_where_it_comes_from(text):
    page = Page(text)
    told = dict(zip((e["text"] for e in page.all(tag="dt")), (e["text"] for e in page.all(tag="dd")), strict=True))
    assert "Small edits to 5 of 32 attention heads of model, learned by the recipe jola" in text
    assert re.fullmatch(r"\d{4}-\d\d-\d\d, the date of run.json", told["run"])
    assert told["data"] == "1,200 to train on; 9 to validate on"
    assert told["command"] == "not recorded: the run left no run.yaml"
    assert re.match(r"headedit \S+, torch \S+, transformers \S+", told["versions"])
    assert re.match(r"\d{4}-\d\d-\d\d, by headedit ", told["page"])


def test_the_date_of_the_page_is_that_of_the_record_where_it_has_one(run, tmp_path):
    folder = shutil.copytree(run, tmp_path / "run")
    record = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps({**record, "date": "2020-02-29"}))
    assert ("run", "2020-02-29", False) in origin(RunFolder.read(folder), None)
    (folder / "run.json").write_text(json.dumps({**record, "date": 5}))
    with pytest.raises(HeadEditError, match=r"run\.json: the file is damaged: date"):
        RunFolder.read(folder)


def call(*arguments):
    """Runs a command in this process; its exit code."""
    with pytest.raises(SystemExit) as caught:
        main([str(a) for a in arguments])
    return caught.value.code


def test_the_command_measures_on_data_or_leaves_evidence_out(run, tmp_path, capsys):
    data, page = tmp_path / "data.json", tmp_path / "new" / "page.html"
    data.write_text(json.dumps(RECORDS))
    assert call("report", run, "--output", page) == 0
    assert "left out; --data FILE adds them" in " ".join(capsys.readouterr().out.split())
    assert "effect" not in Page(page.read_text()).heads()[0]
    arguments = ["--data", data, "--device", "cpu", "--limit", 4, "--no-probes", "--output", page]
    assert call("report", run, *arguments) == 2
    assert "records the name of its base model" in " ".join(capsys.readouterr().err.split())
    arguments += ["--model", MODEL_FOLDER]
    assert call("report", run, *arguments) == 0
    read = Page(page.read_text())
    assert "probe accuracy" not in read.heads()[0]
    assert all(float(row["effect"]["data-order"]) != 0 for row in read.heads()[:5])
    (said,) = [e["text"] for e in read.all(tag="code") if e["text"].startswith("headedit report")]
    assert said.startswith("headedit report '<my> & run' --model model --data data.json --limit 4")
    assert said.endswith("--device cpu --no-probes")
    assert "Measured on 4 examples" in page.read_text()
    byte_level(CHATML).save_pretrained(tmp_path / "tokenizer")
    assert call("report", run, *arguments, "--tokenizer", tmp_path / "tokenizer") == 2
    message = capsys.readouterr().err
    assert "Give the model's own tokenizer" in message
    assert "--no-evidence" in message
    assert call("report", run, "--evidence") == 2
    assert "does not say which data to measure on" in capsys.readouterr().err
    assert call("report", run, "--data", data, "--no-evidence") == 2
    evaluated = tmp_path / "evaluated.json"
    options = ["--edits", run, "--data", data, "--device", "cpu", "--output", evaluated]
    assert call("eval", "--model", MODEL_FOLDER, *options) == 0
    assert call("report", run, "--no-evidence", "--eval", evaluated, "--output", page) == 0
    cells = [[cell["text"] for cell in row] for table in Page(page.read_text()).tables for row in table]
    (line,) = [row for row in cells if row[0] == "exact match"]
    found = json.loads(evaluated.read_text())
    figures = [found[key]["value"] for key in ("score", "base", "constant")]
    assert line[1:3] == ["accuracy", "8"]
    assert [text.partition(" ")[0] for text in line[3:]] == [f"{100 * value:.1f}" for value in figures]
    assert call("report", tmp_path) == 2


def test_the_command_takes_model_and_data_from_the_config_of_a_run(run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    data = tmp_path / "data.json"
    data.write_text(json.dumps(RECORDS))
    config = headedit.training.config.RunConfig.from_dict(
        {"model": {"name": str(MODEL_FOLDER), "device": "cpu"}, "data": {"train": str(data), "valid": 3}}, "here"
    )
    dataclasses.replace(config, output=str(tmp_path / "run")).save(tmp_path / "run")
    assert call("report", tmp_path / "run", "--no-probes") == 0
    assert "Measured on 3 examples" in (tmp_path / "run" / "report.html").read_text()
    assert call("report", tmp_path / "run", "--data", data, "--no-probes") == 0
    assert "Measured on 8 examples" in (tmp_path / "run" / "report.html").read_text()


AXE = os.environ.get("AXE_CORE")  # the file axe.min.js, of npm install axe-core
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="module")
def browser():
    api = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("no chromium here")
    with api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def visit(browser, text, tmp_path):
    """Opens the page with some options; at the end nothing may have failed, and nothing else have been loaded."""
    (tmp_path / "report.html").write_text(text)
    address, faults, pages = (tmp_path / "report.html").as_uri(), [], []

    def opened(**options):
        page = browser.new_page(**options)
        pages.append(page)
        page.on("console", lambda message: faults.append(message.text))
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("request", lambda request: request.url.startswith(("data:", address)) or faults.append(request.url))
        page.goto(address)
        return page

    yield opened
    for page in pages:
        page.close()
    assert faults == []


def column(page, name):
    place = [text.strip() for text in page.locator("#rows thead th").all_text_contents()].index(name) + 1
    return page.locator(f"#rows tbody tr > :nth-child({place})").all_text_contents()


def numbers(texts):
    """The values before their errors."""
    return [float(text.partition(" ")[0]) for text in texts]


def test_a_click_sorts_the_table_and_missing_values_stay_last(visit, frame):
    page = visit()
    button = page.get_by_role("button", name="effect", exact=True)
    button.click()
    effects = sorted(frame["effect"], reverse=True)
    assert numbers(column(page, "effect")) == pytest.approx(effects, rel=0.05)
    assert page.locator("#rows th[aria-sort]").get_attribute("aria-sort") == "descending"
    button.press("Enter")
    assert numbers(column(page, "effect")) == pytest.approx(effects[::-1], rel=0.05)
    page.get_by_role("button", name="suppresses").click()
    said = column(page, "suppresses")
    assert [text == "–" for text in said] == [False] * 4 + [True] * 28
    page.get_by_role("button", name="suppresses").click()
    assert [text == "–" for text in column(page, "suppresses")] == [False] * 4 + [True] * 28
    assert page.locator("#rows th[aria-sort]").count() == 1
    page.get_by_role("button", name="head", exact=True).click()
    assert column(page, "head") == [f"L{layer}H{head}" for layer in range(4) for head in range(8)]
    page.get_by_label("edited heads only").check()
    assert page.locator("#rows tbody tr:visible").count() == len(OPEN)


def test_pointing_at_a_head_shows_its_numbers_and_tokens(visit, frame):
    page = visit()
    tip = page.get_by_role("tooltip")
    page.get_by_label("L0H2: offset", exact=True).hover()
    told = dict(zip(tip.locator("dt").all_text_contents(), tip.locator("dd").all_text_contents(), strict=True))
    assert tip.locator("b").first.text_content() == "L0H2"
    assert numbers([told["effect"]]) == pytest.approx([frame["effect"][2]], rel=0.05)
    assert told["promotes"] == "".join(NASTY)
    assert told["edit"] == "offset"
    page.get_by_label("L1H5: scale", exact=True).hover()
    assert "promotes" not in tip.locator("dt").all_text_contents()
    page.locator("h1").hover()
    assert tip.is_hidden()


def test_the_table_can_be_copied_as_csv(visit):
    page = visit()
    page.evaluate("navigator.clipboard.writeText = async (text) => { window.kept = text; }")
    page.get_by_role("button", name="Copy CSV").click()
    page.get_by_text("Copied 32 heads.").wait_for()
    assert page.evaluate("kept").startswith("name,layer,head,edit,")
    assert json.dumps(NASTY).replace('"', '""') in page.evaluate("kept")


def test_a_phone_is_told_what_scrolls_sideways(visit):
    page = visit(viewport={"width": 420, "height": 800})
    wide = page.locator(".scroll.wide")
    assert wide.count() >= 2
    hint = "area => getComputedStyle(area, '::before').content"
    assert "scrolls sideways" in wide.first.evaluate(hint)
    assert page.evaluate("document.documentElement.scrollWidth") == 420


def test_keys_move_through_the_map_and_to_the_table(visit):
    page = visit(viewport={"width": 500, "height": 400})
    tip = page.get_by_role("tooltip")
    page.get_by_label("Colour by").focus()
    page.keyboard.press("Tab")
    for key in ("ArrowRight", "ArrowDown", "ArrowDown", "ArrowUp", "ArrowLeft", "ArrowRight", "ArrowUp", "ArrowUp"):
        page.keyboard.press(key)
    focused = "document.activeElement.getAttribute('aria-label')"
    assert page.evaluate(focused) == "L0H1: none"
    assert tip.locator("b").first.text_content() == "L0H1"
    page.evaluate("new Promise(done => { addEventListener('scroll', () => setTimeout(done)); scrollBy(0, 20); })")
    assert tip.is_visible()
    page.keyboard.press("Escape")
    assert tip.is_hidden()
    page.keyboard.press("Enter")
    assert page.url.endswith("#head-attention-0-1")
    assert page.locator("#rows tr:target th").text_content() == "L0H1"
    assert page.locator(".map a[tabindex='0']").count() == 1


def test_the_cells_have_the_colours_of_the_chosen_measure(visit):
    page = visit()
    cell = page.locator(".map td").filter(has=page.get_by_label("L0H2: offset", exact=True))
    colour = "cell => getComputedStyle(cell).backgroundColor"
    assert cell.evaluate(colour) == "rgb(0, 114, 178)"  # an offset
    page.get_by_label("Colour by").select_option(label="offset gate")
    assert cell.evaluate(colour) == "rgb(254, 232, 56)"  # open
    assert page.locator(".legend:visible b").all_text_contents() == ["0", "1"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_contrast_and_nothing_exceeds_the_page(scheme, visit):
    page = visit(color_scheme=scheme, viewport={"width": 500, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") == 500
    for place in ("h1", ".note", ".facts dt", "#rows .closed td", "#rows .closed th", "#rows th", "a"):
        colours = page.locator(place).first.evaluate(
            """element => {
              let behind = element;
              while (getComputedStyle(behind).backgroundColor === "rgba(0, 0, 0, 0)") behind = behind.parentElement;
              return [getComputedStyle(element).color, getComputedStyle(behind).backgroundColor];
            }"""
        )
        assert contrast(*map(hexadecimal, colours)) >= 4.5, place


@pytest.mark.skipif(AXE is None, reason="AXE_CORE does not name the file axe.min.js of axe-core")
@pytest.mark.parametrize("width", [1200, 420])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_that_keeps_people_out(scheme, width, visit):
    page = visit(color_scheme=scheme, viewport={"width": width, "height": 900})
    page.evaluate(Path(AXE).read_text(encoding="utf-8"))  # not as a script of the page, which allows its own alone
    assert page.evaluate("async () => (await axe.run()).violations.map(found => found.id)") == []


def test_without_scripts_the_table_is_complete_and_the_map_links_to_it(visit):
    page = visit(java_script_enabled=False)
    assert page.locator("#rows tbody tr:visible").count() == 32
    assert page.locator("#measure").is_hidden()
    link = page.get_by_label("L3H3: offset and scale", exact=True)
    assert link.get_attribute("title") == "L3H3: offset and scale"
    link.click()
    assert page.url.endswith("#head-attention-3-3")
    page.get_by_label("edited heads only").check()
    assert page.locator("#rows tbody tr:visible").count() == len(OPEN)


def test_large_models_have_their_edited_heads_shown_first(browser, tmp_path):
    model = tiny_model("llama", num_hidden_layers=48, num_attention_heads=64, hidden_size=64, head_dim=2)
    handle = headedit.attach(model, config=EditConfig(gate_init=-10.0))
    handle.set_head(40, 60, scale=0.0)
    text = report(write_run(handle, tmp_path))
    assert len(text) < 3_000_000
    (tmp_path / "report.html").write_text(text)
    page = browser.new_page(viewport={"width": 1200, "height": 900})
    page.goto((tmp_path / "report.html").as_uri())
    assert page.locator("#rows tbody tr:visible").count() == 1
    box = page.get_by_label("L40H60: scale", exact=True).bounding_box()
    assert min(box["width"], box["height"]) >= 8
    assert page.evaluate("document.documentElement.scrollWidth") == 1200
    page.close()


def test_the_page_says_how_many_examples_the_run_was_tested_on(tmp_path, edits):
    page = Page(report(write_run(edits, tmp_path / "run", test_examples=1500)))
    told = dict(zip((e["text"] for e in page.all(tag="dt")), (e["text"] for e in page.all(tag="dd")), strict=True))
    assert told["data"] == "1,200 to train on; 9 to validate on; 1,500 to test on"
