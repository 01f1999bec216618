"""The README and the notebooks: their code runs, their commands parse, and what they name is public."""

import ast
import json
import re
from pathlib import Path

import pytest
from command_lines import parse
from docs_pages import PAGES, README, ROOT, blocks_of, check_shown, name_of
from import_graph import names_imported

import headedit

TEXT = README.read_text()
BLOCKS = blocks_of(TEXT)
PYTHON = [block.code for block in BLOCKS if block.language == "python"]
OF_PAGES = {page: [block.code for block in blocks_of(page.read_text()) if block.language == "python"] for page in PAGES}
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


LINES = 150
"""The most lines that the README may have."""


def test_the_readme_is_short():
    assert len(TEXT.splitlines()) <= LINES


def test_the_python_of_the_readme_runs_prints_what_it_shows_and_draws(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (code,) = PYTHON
    exec(compile(code, "<README.md>", "exec"), {})
    shown = BLOCKS[[block.code for block in BLOCKS].index(code) + 1]
    assert shown.language == "text"
    check_shown(shown.code, capsys.readouterr().out)
    pictures = re.findall(r'savefig\("(.*?)"\)', code)
    assert pictures
    assert all((tmp_path / name).is_file() for name in pictures)


def test_the_python_of_the_readme_is_fifteen_lines():
    statements = [line for line in PYTHON[0].splitlines() if line and not re.match(r"import |from ", line)]
    assert len(statements) <= 15


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_all_python_of_a_page_is_in_blocks_that_are_run(page):
    elsewhere = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    assert re.findall(r"^ +(?:from|import) \w+.*", elsewhere, flags=re.MULTILINE) == []


def test_every_file_that_the_readme_leads_to_exists():
    links = re.findall(r"\]\(([^)#]+)\)", TEXT)
    assert len(links) > 15
    assert [link for link in links if "://" not in link and not (ROOT / link).exists()] == []


@pytest.mark.parametrize(
    "line",
    [
        "headedit trian --model m",
        "headedit train --modell m",
        "headedit eval --data test.jsonl",
        "headedit bench --repeats none",
        "headedit bench routes",
        "headedit plot a b",
    ],
)
def test_a_command_line_with_a_mistake_does_not_parse(line):
    with pytest.raises(Exception, match=r"(?i)no such|missing|invalid|valid integer|unexpected|got"):
        parse(line)


def code_of(notebook: Path) -> str:
    cells = json.loads(notebook.read_text())["cells"]
    return "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")


def public_names_in(code: str) -> set[str]:
    """Each NAME that code uses as ``headedit.NAME``, imports from headedit, or imports something from."""
    tree = ast.parse(code)
    imported = {name for name, _ in names_imported(tree, "") if name.startswith("headedit.")}
    used = {node for node in ast.walk(tree) if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)}
    return {name.split(".")[1] for name in imported} | {node.attr for node in used if node.value.id == "headedit"}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_name_of_a_page_is_public(page):
    spans = re.findall(r"`(?:with |class \w+\()?headedit\.(\w+)", page.read_text())
    files_and_groups = {"safetensors", "specs"}  # headedit.safetensors, and the entry points headedit.specs
    named = (set(spans) - files_and_groups).union(*map(public_names_in, OF_PAGES[page]))
    assert named - {"__all__", "__version__"} <= set(headedit.__all__)


def test_every_public_name_has_an_example():
    examples = re.findall(r"^### `(\w+)`$", (ROOT / "docs" / "examples.md").read_text(), flags=re.MULTILINE)
    assert sorted(examples) == headedit.__all__


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_name_of_a_notebook_is_public(notebook):
    named = public_names_in(code_of(notebook))
    assert "attach" in named
    assert named <= set(headedit.__all__)


def test_the_names_of_code_are_found():
    code = (
        "import headedit\nfrom headedit import load\nfrom headedit.interpret import iti\nheadedit.plot.gates(attach(m))"
    )
    assert public_names_in(code) == {"load", "interpret", "plot"}


def test_the_spec_on_the_page_about_architectures_is_a_spec(tmp_path):
    from headedit.specs import read_spec

    page = (ROOT / "docs" / "how-to" / "add-an-architecture.md").read_text()
    (block,) = [block.code for block in blocks_of(page) if block.title == "my_arch.yaml"]
    (tmp_path / "my_arch.yaml").write_text(block)
    spec = read_spec(tmp_path / "my_arch.yaml")
    assert spec.model_types == ["my_arch"]
    assert len(block.strip().splitlines()) <= 10


def test_the_page_of_models_has_the_counts_of_today():
    from headedit.specs.catalogue import counts

    page = (ROOT / "docs" / "supported-models.md").read_text()
    assert counts()
    for what, number in counts():
        assert f"| {what} | {number} |" in page
