"""A run as one HTML file: what it says, that it loads nothing, and that it works in a browser, by mouse and by keys."""

import dataclasses
import json
import re
import shutil
from html.parser import HTMLParser

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
from headedit.interpret.report import Table, report
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
    labels = {"effect": "effect", "gate_offset": "offset gate", "share": "share", "probe_accuracy": "probe accuracy"}
    for row, known in zip(rows, frame.to_dict("records"), strict=True):
        assert (row["layer"]["text"], row["head"]["text"]) == (str(known["layer"]), str(known["head"]))
        for key, label in labels.items():
            assert float(row[label]["data-order"]) == pytest.approx(known[key], rel=1e-8)
            assert float(row[label]["text"]) == pytest.approx(known[key], rel=6e-3)
        if known["promotes"] is not None:
            assert row["promotes"]["text"] == "".join(known["promotes"])
    assert [row["edit"]["text"] for row in rows if row["edit"]["text"] != "none"] == [
        "offset",
        "scale",
        *["offset and scale"] * 3,
    ]


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
    assert all(token in page.heads()[2]["promotes"]["text"] for token in NASTY)
    addresses = [e[key] for e in page.elements for key in ("src", "href") if key in e]
    assert all(address.startswith(("#", "data:")) for address in addresses)
    assert "http://" not in text.replace("http-equiv", "")
    assert "https://" not in text
    (policy,) = page.all(**{"http-equiv": "Content-Security-Policy"})
    assert policy["content"].startswith("default-src 'none'; img-src data:;")


def test_the_report_of_a_run_without_evidence_shows_its_edits(run):
    page = Page(report(run))
    rows = page.heads()
    assert list(rows[0]) == ["layer", "head", "edit", "offset gate", "scale gate", "‖g·a‖", "‖g·m‖"]
    assert rows[1 * 8 + 5]["‖g·m‖"]["text"] == "3.2"  # sqrt(16) * 0.8


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
    (folder / "run.yaml").write_text("model: {name: <tiny>}")
    (folder / "data.json").write_text(json.dumps({"train": {"read": 12345}}))
    page = Page(report(folder))
    assert "Seeds" not in [e["text"].partition(" ")[0] for e in page.all(tag="figcaption")]
    write_run(edits, folder / "seed-1")
    page = Page(report(folder))
    titles = [e["text"].partition(" ")[0] for e in page.all(tag="figcaption")]
    assert titles == ["Gates", "Effect", "Pruning", "Seeds", "History"]
    cells = [[cell["text"] for cell in row] for table in page.tables for row in table]
    assert ["jaccard", "1"] in cells
    assert ["train.read", "12,345"] in cells
    assert page.all(tag="pre")[0]["text"] == "model: {name: <tiny>}"


def test_a_folder_or_evidence_that_cannot_be_reported_is_refused(run, frame, edits, tmp_path):
    with pytest.raises(HeadEditError, match="no edits to report on"):
        report(tmp_path)
    edits.save_pretrained(tmp_path / "bare")
    with pytest.raises(HeadEditError, match=r"no history\.jsonl.*headedit plot"):
        report(tmp_path / "bare")
    write_run(edits, tmp_path / "bare")
    (tmp_path / "bare" / "run.json").write_text("[")
    with pytest.raises(HeadEditError, match=r"run\.json: is not valid JSON"):
        report(tmp_path / "bare")
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
    assert float(read.heads()[OPEN[0][1]]["effect"]["text"]) != 0
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
    place = [text.strip() for text in page.locator("#rows th").all_text_contents()].index(name) + 1
    return page.locator(f"#rows tbody td:nth-child({place})").all_text_contents()


def test_a_click_sorts_the_table_and_missing_values_stay_last(visit, frame):
    page = visit()
    button = page.get_by_role("button", name="effect", exact=True)
    button.click()
    effects = sorted(frame["effect"], reverse=True)
    assert [float(text) for text in column(page, "effect")] == pytest.approx(effects, rel=6e-3)
    assert page.locator("#rows th[aria-sort]").get_attribute("aria-sort") == "descending"
    button.press("Enter")
    assert [float(text) for text in column(page, "effect")] == pytest.approx(effects[::-1], rel=6e-3)
    page.get_by_role("button", name="suppresses").click()
    said = column(page, "suppresses")
    assert [text == "–" for text in said] == [False] * 4 + [True] * 28
    page.get_by_role("button", name="suppresses").click()
    assert [text == "–" for text in column(page, "suppresses")] == [False] * 4 + [True] * 28
    assert page.locator("#rows th[aria-sort]").count() == 1
    page.get_by_role("button", name="head", exact=True).click()
    assert column(page, "head") == [str(head) for head in range(8) for _ in range(4)]
    page.get_by_label("edited heads only").check()
    assert page.locator("#rows tbody tr:visible").count() == len(OPEN)


def test_pointing_at_a_head_shows_its_numbers_and_tokens(visit, frame):
    page = visit()
    tip = page.get_by_role("tooltip")
    page.get_by_label("layer 0, head 2", exact=True).hover()
    told = dict(zip(tip.locator("dt").all_text_contents(), tip.locator("dd").all_text_contents(), strict=True))
    assert tip.locator("b").first.text_content() == "layer 0, head 2"
    assert float(told["effect"]) == pytest.approx(frame["effect"][2], rel=6e-3)
    assert told["promotes"] == "".join(NASTY)
    assert told["edit"] == "offset"
    page.get_by_label("layer 1, head 5", exact=True).hover()
    assert "promotes" not in tip.locator("dt").all_text_contents()
    page.locator("h1").hover()
    assert tip.is_hidden()


def test_keys_move_through_the_map_and_to_the_table(visit):
    page = visit(viewport={"width": 500, "height": 400})
    tip = page.get_by_role("tooltip")
    page.get_by_label("Colour by").focus()
    page.keyboard.press("Tab")
    for key in ("ArrowRight", "ArrowDown", "ArrowDown", "ArrowUp", "ArrowLeft", "ArrowRight", "ArrowUp", "ArrowUp"):
        page.keyboard.press(key)
    focused = "document.activeElement.getAttribute('aria-label')"
    assert page.evaluate(focused) == "layer 0, head 1"
    assert tip.locator("b").first.text_content() == "layer 0, head 1"
    page.evaluate("new Promise(done => { addEventListener('scroll', () => setTimeout(done)); scrollBy(0, 20); })")
    assert tip.is_visible()
    page.keyboard.press("Escape")
    assert tip.is_hidden()
    page.keyboard.press("Enter")
    assert page.url.endswith("#head-attention-0-1")
    assert page.locator("#rows tr:target td").nth(1).text_content() == "1"
    assert page.locator(".map a[tabindex='0']").count() == 1


def test_the_cells_have_the_colours_of_the_chosen_measure(visit):
    page = visit()
    cell = page.locator(".map td").filter(has=page.get_by_label("layer 0, head 2", exact=True))
    colour = "cell => getComputedStyle(cell).backgroundColor"
    assert cell.evaluate(colour) == "rgb(0, 114, 178)"  # an offset
    page.get_by_label("Colour by").select_option(label="offset gate")
    assert cell.evaluate(colour) == "rgb(254, 232, 56)"  # open
    assert page.locator(".legend:visible b").all_text_contents() == ["0", "1"]


def luminance(colour):
    """Of ``rgb(...)``, as WCAG 2 defines it."""
    parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_contrast_and_nothing_exceeds_the_page(scheme, visit):
    page = visit(color_scheme=scheme, viewport={"width": 500, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") == 500
    for place in ("h1", ".note", ".facts dt", "#rows .closed td", "#rows th", "a"):
        colours = page.locator(place).first.evaluate(
            """element => {
              let behind = element;
              while (getComputedStyle(behind).backgroundColor === "rgba(0, 0, 0, 0)") behind = behind.parentElement;
              return [getComputedStyle(element).color, getComputedStyle(behind).backgroundColor];
            }"""
        )
        dark, light = sorted(map(luminance, colours))
        assert (light + 0.05) / (dark + 0.05) >= 4.5, place


def test_without_scripts_the_table_is_complete_and_the_map_links_to_it(visit):
    page = visit(java_script_enabled=False)
    assert page.locator("#rows tbody tr:visible").count() == 32
    assert page.locator("#measure").is_hidden()
    link = page.get_by_label("layer 3, head 3", exact=True)
    assert link.get_attribute("title") == "layer 3, head 3: offset and scale"
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
    box = page.get_by_label("layer 40, head 60", exact=True).bounding_box()
    assert min(box["width"], box["height"]) >= 8
    assert page.evaluate("document.documentElement.scrollWidth") == 1200
    page.close()
