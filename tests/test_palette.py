"""A quantity has one colour and one name everywhere; colours stand out and colour-blind readers can tell them apart."""

import re
from itertools import combinations
from pathlib import Path

import numpy
import pytest
from matplotlib.colors import to_rgb

import headedit
from headedit.interpret.labels import LABELS, axis_label, label, short
from headedit.interpret.palette import COLOURS, DARK, LAYERS, METHODS, OTHER_LAYERS
from headedit.interpret.report.columns import COLUMNS
from headedit.interpret.report.heads import colour_rules

ROOT = Path(headedit.__file__).parent
TOGETHER = [
    [COLOURS[name] for name in ("none", "offset", "scale", "both")],
    [COLOURS[name] for name in ("rise", "none", "fall")],
    [COLOURS[name] for name in ("training_loss", "validation_loss", "penalty")],
    [COLOURS[name] for name in ("vector_rate", "gate_rate", "kept")],
    [COLOURS[name] for name in ("jaccard", "chance")],
    [COLOURS[name] for name in ("neither_set", "first_set", "second_set", "both_sets", "offset", "scale", "both")],
    [COLOURS[name] for name in ("validation_loss", "refit", "kept")],
    [COLOURS[name] for name in ("step", "forward", "reference")],
    [COLOURS[name] for name in ("file", "hardened_file")],
    [COLOURS[name] for name in ("forward", "against_one")],
    [COLOURS[name] for name in ("forward", "enter_first_ms", "enter_ms", "add_ms")],
    list({METHODS[name] for name in METHODS} - {METHODS["oracle"]}),  # grey lines of another style
    list({*LAYERS.values(), *OTHER_LAYERS}),
]
LINES = {name: COLOURS[name] for name in COLOURS if not name.endswith(("_set", "_sets")) and name != "none"}
ON_PAGE = ("offset", "scale", "both", "rise", "fall")
DICHROMACY = {  # Machado, Oliveira, Fernandes, IEEE TVCG 2009, severity 1.0, on linear RGB
    "none": numpy.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}
XYZ = [[0.412456, 0.357576, 0.180438], [0.212673, 0.715152, 0.072175], [0.019334, 0.119192, 0.950304]]


def linear(colour):
    values = numpy.array(to_rgb(colour))
    return numpy.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def lab(colour, sight):
    """CIE L*a*b* of a colour as somebody sees it."""
    seen = numpy.clip(numpy.array(DICHROMACY[sight]) @ linear(colour), 0, 1)
    x, y, z = (numpy.array(XYZ) @ seen) / numpy.array(XYZ).sum(1)
    f = numpy.vectorize(lambda t: numpy.cbrt(t) if t > 0.008856 else 7.787 * t + 16 / 116)
    return numpy.array([116 * f(y) - 16, 500 * (f(x) - f(y)), 200 * (f(y) - f(z))])


def contrast(first, second):
    """As WCAG 2 defines it, from 1 to 21."""
    dark, light = sorted(float(numpy.array(XYZ[1]) @ linear(colour)) for colour in (first, second))
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("sight", DICHROMACY)
def test_colours_of_one_picture_can_be_told_apart_by_colour_blind_readers(sight):
    pairs = [pair for colours in TOGETHER for pair in combinations(colours, 2)]
    assert len(pairs) > 50
    close = {pair: d for pair in pairs if (d := numpy.linalg.norm(lab(pair[0], sight) - lab(pair[1], sight))) < 9}
    assert not close


def test_lines_stand_out_from_white_and_the_reports_colours_from_its_dark_page_too():
    faint = {name: contrast(colour, "#ffffff") for name, colour in {**LINES, **METHODS}.items()}
    assert {name: value for name, value in faint.items() if value < 2.9} == {}
    css = (ROOT / "interpret" / "report" / "page.css").read_text()
    light, dark = re.findall(r"--page: (#\w+)", css)
    assert all(contrast(COLOURS[name], page) >= 2.9 for page in (light, dark) for name in ON_PAGE)
    assert contrast(DARK["none"], dark) < contrast(COLOURS["offset"], dark)


def test_no_colour_of_a_quantity_is_written_anywhere_but_in_the_palette():
    sources = [
        path
        for room in ("interpret", "bench", "demo", "cli")
        for path in (ROOT / room).rglob("*")
        if path.suffix in (".py", ".css", ".html", ".js") and path.name != "palette.py"
    ]
    assert len(sources) > 60
    found = {path: re.findall(r"#[0-9a-fA-F]{6}\b", path.read_text(encoding="utf-8")) for path in sources}
    written = {path: colours for path, colours in found.items() if colours}
    (style,) = written  # text, lines and panels of the page
    assert style.name == "page.css"
    assert not set(written[style]) & {*COLOURS.values(), *METHODS.values(), *DARK.values()} - {"#444444"}


def test_the_reports_style_sheet_takes_the_colours_of_the_palette():
    rules = colour_rules()
    root = rules.splitlines()[0]
    assert all(f"--{name}:{COLOURS[name]};" in root for name in (*ON_PAGE, "none"))
    assert f"--none:{DARK['none']};" in rules.splitlines()[1]
    used = set(re.findall(r"var\(--(\w+)\)", (ROOT / "interpret" / "report" / "page.css").read_text()))
    assert {*ON_PAGE, "none"} <= used


def test_a_label_names_its_quantity_with_the_unit():
    assert short("effect") == "effect"
    assert label("loss") == "loss (nats per token)"
    assert axis_label("effect") == "rise of the loss without the edit\n(nats per token)"
    assert axis_label("metric") == "metric"
    assert all(LABELS[column.key].meaning for column in COLUMNS)
    assert not [name for name, found in LABELS.items() if " a token" in found.unit + found.meaning]
