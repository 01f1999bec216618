"""A handle shows itself in a notebook in HTML that needs no script, and as text where there is none."""

import re
from xml.etree import ElementTree

import pytest
import torch
from IPython.core.formatters import DisplayFormatter
from tiny import tiny_model

import headedit
from headedit import EditConfig
from headedit.interpret.plots.jupyter import html
from headedit.io import notebook


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
