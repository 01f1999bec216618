"""The pictures of docs/gallery.md: its lines draw what it shows, whatever the font, and of other values something else.

``python tests/test_gallery.py`` draws the pictures that the page shows anew; look at each before you commit it.
"""

import json
import os
import re
import shutil
import tempfile
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import numpy
import pytest
from docs_pages import ROOT, blocks_of
from filelock import FileLock
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

import headedit
from headedit.demo import MODEL_FOLDER

PAGE = ROOT / "docs" / "gallery.md"
FOLDER = ROOT / "docs" / "gallery"
RUNS = ("reverse", "next")
SHOWN = re.findall(r"!\[[^\]]+\]\(gallery/([\w.]+)\)", PAGE.read_text(encoding="utf-8"))
IMAGES = [name for name in SHOWN if name.endswith(".png")]
OTHER_LABELS = ("[0] * 48 + [1] * 48", "[0, 1] * 48")  # the base model's probes, too, then show something else
OF_NO_RUN = "methods.png"
LARGEST = 40 * 1024
CELL = 8  # pixels
DPI = 100
LARGEST_CELL, LARGEST_SHARE = 0.3, 0.25  # another font: up to 0.21 and 0.17; another run: from 0.48 of all


def draw_page(folder: Path, *, another_font: bool = False, change: tuple[str, str] = ("", "")) -> Path:
    """Runs the lines of the page in a folder with ``gallery/``, and returns it.

    The pictures are in it; with ``another_font`` also with letters of another font, in ``another-font/``. ``change`` is
    a text of the page and what to put in its place.
    """
    text = PAGE.read_text(encoding="utf-8")
    assert change[0] in text
    blocks = [block for block in blocks_of(text.replace(*change) if change[0] else text) if block.language == "python"]
    names: dict[str, object] = {"__name__": "__main__"}
    (folder / "another-font").mkdir()
    save = Figure.savefig

    def save_twice(figure: Figure, name: object, **options: object) -> None:
        save(figure, name, **{"dpi": DPI, **options})
        if not another_font or not isinstance(name, str):
            return
        FigureCanvasAgg(figure)  # measures the letters anew
        with matplotlib.rc_context({"font.sans-serif": ["DejaVu Serif"]}):
            save(figure, Path("another-font") / name, dpi=DPI)

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(Figure, "savefig", save_twice)
        for block in blocks:
            exec(compile("\n" * (block.line - 1) + block.code, "<docs/gallery.md>", "exec"), names)
    plt.close("all")
    return folder


def runs_in(folder: Path, names: dict[str, str]) -> Path:
    """A folder with ``gallery/``, in which a run has another's name."""
    for new, old in names.items():
        shutil.copytree(FOLDER / old, folder / "gallery" / new)
    return folder


def colours(file: Path, shape: tuple[int, int] | None = None) -> numpy.ndarray:
    """What is coloured in each cell of a picture, [down, across, 3], 0 for white, grey and black, as letters are.

    Cells are 8 pixels wide and high, or ``shape`` says how many there are.
    """
    image = Image.open(file).convert("RGBA")
    image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    down, across = (round(image.height / CELL), round(image.width / CELL)) if shape is None else shape
    means = numpy.asarray(image.resize((across, down), Image.Resampling.BOX), dtype=float) / 255
    return means - means.mean(-1, keepdims=True)


def misplaced(one: numpy.ndarray, other: numpy.ndarray) -> numpy.ndarray:
    """How far each cell differs from the most similar one of the nine around its place in the other picture.

    Letters of another font move a frame by a few pixels, which hardly counts.
    """
    padded = numpy.pad(other, ((1, 1), (1, 1), (0, 0)), mode="edge")
    down, across, _ = one.shape
    near = [numpy.abs(one - padded[y : y + down, x : x + across]).max(-1) for y in range(3) for x in range(3)]
    return numpy.min(near, axis=0)


def is_another(drawn: Path, reference: Path) -> bool:
    """Whether two pictures show other values: in one cell very much, or a large share of all that is coloured."""
    (wide, high), (expected_wide, expected_high) = (Image.open(file).size for file in (drawn, reference))
    if not 0.95 < wide * expected_high / (high * expected_wide) < 1.05:
        return True
    expected = colours(reference)
    found = colours(drawn, expected.shape[:2])
    return any(
        (wrong := misplaced(one, other)).max() > LARGEST_CELL
        or wrong.sum() > LARGEST_SHARE * numpy.abs(one).max(-1).sum()
        for one, other in ((found, expected), (expected, found))
    )


def drawn_once(factory: pytest.TempPathFactory, name: str, runs: dict[str, str], **options: object) -> Path:
    """A folder that ``draw_page`` has drawn into, once for all processes that share the tests."""
    together = "PYTEST_XDIST_WORKER" in os.environ
    folder = (factory.getbasetemp().parent if together else factory.getbasetemp()) / name
    with FileLock(f"{folder}.lock"):
        if not (folder / "drawn").is_file():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            draw_page(runs_in(folder, runs), **options)
            (folder / "drawn").touch()
    return folder


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """The pictures as the page draws them."""
    return drawn_once(tmp_path_factory, "gallery-drawn", dict(zip(RUNS, RUNS, strict=True)), another_font=True)


@pytest.fixture(scope="module")
def drawn_of_the_other_run(tmp_path_factory):
    """The pictures that the same lines draw where the two runs have each other's name, and probes other labels."""
    runs = dict(zip(RUNS, reversed(RUNS), strict=True))
    return drawn_once(tmp_path_factory, "gallery-of-the-other-run", runs, change=OTHER_LABELS)


def test_the_page_shows_every_picture_that_there_is():
    functions = [name for name in headedit.plot.__all__ if not isinstance(getattr(headedit.plot, name), type)]
    text = PAGE.read_text(encoding="utf-8")
    assert [name for name in functions if f"\n### {name}\n" not in text or f"headedit.plot.{name}(" not in text] == []
    assert sorted(SHOWN) == sorted(file.name for file in FOLDER.iterdir() if file.is_file())
    assert [name for name in SHOWN if (FOLDER / name).stat().st_size > LARGEST] == []


@pytest.mark.parametrize("name", IMAGES)
def test_the_lines_of_the_page_draw_its_picture(name, drawn):
    assert not is_another(drawn / name, FOLDER / name)


@pytest.mark.parametrize("name", IMAGES)
def test_a_picture_in_another_font_is_the_same_picture(name, drawn):
    assert (drawn / name).read_bytes() != (drawn / "another-font" / name).read_bytes()
    assert not is_another(drawn / "another-font" / name, FOLDER / name)


@pytest.mark.parametrize("name", [name for name in IMAGES if name != OF_NO_RUN])
def test_a_picture_of_other_values_is_another_picture(name, drawn_of_the_other_run):
    assert is_another(drawn_of_the_other_run / name, FOLDER / name)


def test_one_closed_head_makes_another_picture(tmp_path):
    edits = headedit.load(headedit.load_model(MODEL_FOLDER, device="cpu"), FOLDER / "reverse")
    layer, head = (edits.gates().offset > 0).nonzero()[0].tolist()
    edits.set_head(layer, head)
    for draw in (headedit.plot.gates, headedit.plot.types):
        file = tmp_path / f"{draw.__name__}.png"
        draw(edits).savefig(file, dpi=DPI)
        assert is_another(file, FOLDER / file.name)
    plt.close("all")


def test_other_scores_make_another_picture(tmp_path, monkeypatch):
    text = PAGE.read_text(encoding="utf-8")
    block = next(block.code for block in blocks_of(text) if "methods.png" in block.code)
    monkeypatch.chdir(tmp_path)
    for code, differs in ((block, False), (block.replace("0.404", "0.990"), True)):
        with matplotlib.rc_context({"savefig.dpi": DPI}):
            exec(code, {"headedit": headedit})
        assert is_another(tmp_path / "methods.png", FOLDER / "methods.png") == differs
    plt.close("all")


def cells_of(svg: Path) -> list[str]:
    """What a gate map shows: its coloured cells and its words, without numbers that a machine may round otherwise."""
    text = svg.read_text(encoding="utf-8")
    words = [re.sub(r"[-+−]?\d[\d.e−+-]*", "#", words) for words in re.findall(r">([^<>]+)</", text)]
    return re.findall(r"<path data-gate[^>]*>", text) + words


def test_the_gate_map_is_that_of_the_page_and_not_of_other_edits(drawn, drawn_of_the_other_run):
    assert cells_of(drawn / "gate_map.svg") == cells_of(FOLDER / "gate_map.svg")
    assert cells_of(drawn_of_the_other_run / "gate_map.svg") != cells_of(FOLDER / "gate_map.svg")


def test_the_runs_of_the_page_are_what_it_says():
    for name in RUNS:
        record = json.loads((FOLDER / name / "run.json").read_text(encoding="utf-8"))
        assert (record["recipe"], record["train_examples"], record["valid_examples"]) == ("localise", 200, 50)
        assert (record["stability"]["seeds"], record["selection"]["halves"]) == ([0, 1, 2], 12)


def save_small(drawn: Path, reference: Path) -> None:
    """Saves a picture with 64 colours, none of which is far from those it had."""
    few = Image.open(drawn).convert("RGB").quantize(64, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    few.save(reference, optimize=True)


def draw_references() -> None:
    """Draws the pictures of the page into ``docs/gallery/``."""
    with tempfile.TemporaryDirectory() as name:
        drawn = draw_page(runs_in(Path(name), dict(zip(RUNS, RUNS, strict=True))))
        for image in SHOWN:
            if image.endswith(".png"):
                save_small(drawn / image, FOLDER / image)
            else:
                shutil.copy(drawn / image, FOLDER / image)


if __name__ == "__main__":
    draw_references()
