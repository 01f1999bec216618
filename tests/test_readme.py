"""The README and the notebooks: their code runs, their commands parse, and what they name is public."""

import ast
import builtins
import json
import re
from pathlib import Path

import pytest
from command_lines import parse
from import_graph import names_imported

import headedit

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", README, flags=re.DOTALL | re.MULTILINE)
PYTHON = [code for language, code in BLOCKS if language == "python"]
COMMANDS = [
    line
    for language, code in BLOCKS
    if language == "bash"
    for line in code.splitlines()
    if line and not line.startswith("#")
]
INLINE = [" ".join(code.split()) for code in re.findall(r"`(headedit [^`|]+)`", README)]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def names_in(code: str) -> tuple[set[str], set[str]]:
    """The names that code sets, and those that it uses."""
    nodes = list(ast.walk(ast.parse(code)))
    names = [node for node in nodes if isinstance(node, ast.Name)]
    imported = {(alias.asname or alias.name).partition(".")[0] for alias in nodes if isinstance(alias, ast.alias)}
    stored = {name.id for name in names if isinstance(name.ctx, ast.Store)} | imported
    return stored, {name.id for name in names if isinstance(name.ctx, ast.Load)}


def needed(blocks: list[str], last: int) -> list[int]:
    """A block's number after those of the blocks before it that set a name which it, or they, take from outside."""
    chosen, open_names = [], set()
    for i in range(last, -1, -1):
        stored, used = names_in(blocks[i])
        if i == last or stored & open_names:
            chosen.append(i)
            open_names = (open_names - stored) | (used - stored - set(dir(builtins)))
    return chosen[::-1]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A folder to run blocks in; for each row of blocks that was run there, the names after it and what it printed."""
    return tmp_path_factory.mktemp("readme"), {(): ({}, "")}


@pytest.mark.parametrize("block", range(len(PYTHON)))
def test_a_python_block_of_the_readme_runs(block, finished, monkeypatch, capsys):
    folder, done = finished
    monkeypatch.chdir(folder)
    before: tuple[int, ...] = ()
    for i in needed(PYTHON, block):
        if (*before, i) not in done:
            names = dict(done[before][0])
            exec(compile(PYTHON[i], f"README.md, python block {i + 1}", "exec"), names)
            done[(*before, i)] = (names, capsys.readouterr().out)
        before = (*before, i)
    pictures = re.findall(r'savefig\("(.*?)"\)', PYTHON[block])
    assert [name for name in pictures if not (folder / name).is_file()] == []
    counted = "trainable params: 1,088 ||" in done[before][1]
    assert counted == ("print_trainable_parameters" in PYTHON[block])


def test_all_python_of_the_readme_is_in_blocks_that_are_run():
    elsewhere = re.sub(r"^```.*?^```", "", README, flags=re.DOTALL | re.MULTILINE)
    assert re.findall(r"^ +(?:from|import) \w+.*", elsewhere, flags=re.MULTILINE) == []


def test_the_readme_has_python_that_draws_and_counts():
    assert any("savefig" in block for block in PYTHON)
    assert any("print_trainable_parameters" in block for block in PYTHON)


def test_a_block_is_run_after_those_that_set_its_names():
    blocks = ["import os\na = 1", "b = 2", "c = a", "print(c, len([x for x in os.environ]))", "b"]
    assert [needed(blocks, i) for i in range(5)] == [[0], [1], [0, 2], [0, 2, 3], [1, 4]]


@pytest.mark.parametrize("line", [line for line in COMMANDS if not line.startswith("make ")] + INLINE)
def test_a_command_line_of_the_readme_parses(line):
    command = parse(line)
    assert f"headedit {command}".strip() in line


@pytest.mark.parametrize("line", [line for line in COMMANDS if line.startswith("make ")])
def test_a_make_target_of_the_readme_exists(line):
    target = line.split()[1]
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)


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


def test_every_command_line_of_the_readme_is_tested():
    assert len(COMMANDS) >= 20
    assert len(INLINE) >= 10
    assert [line for line in COMMANDS if "headedit" not in line and not line.startswith("make ")] == []


def code_of(notebook: Path) -> str:
    cells = json.loads(notebook.read_text())["cells"]
    return "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")


def public_names_in(code: str) -> set[str]:
    """Each NAME that code uses as ``headedit.NAME``, imports from headedit, or imports something from."""
    tree = ast.parse(code)
    imported = {name for name, _ in names_imported(tree, "") if name.startswith("headedit.")}
    used = {node for node in ast.walk(tree) if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)}
    return {name.split(".")[1] for name in imported} | {node.attr for node in used if node.value.id == "headedit"}


def test_every_name_of_the_readme_is_public():
    spans = re.findall(r"`(?:with |class \w+\()?headedit\.(\w+)", README)
    files_and_groups = {"safetensors", "specs"}  # headedit.safetensors, and the entry points headedit.specs
    named = (set(spans) - files_and_groups).union(*map(public_names_in, PYTHON))
    assert {"attach", "EditConfig", "plot"} <= named
    assert named - {"__all__"} <= set(headedit.__all__)


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


def test_the_spec_in_the_readme_is_a_spec(tmp_path):
    from headedit.specs import read_spec

    (block,) = re.findall(r"```yaml\n(# my_arch.yaml.*?)```", README, flags=re.DOTALL)
    (tmp_path / "my_arch.yaml").write_text(block)
    spec = read_spec(tmp_path / "my_arch.yaml")
    assert spec.model_types == ["my_arch"]
    assert len(block.strip().splitlines()) <= 10


def test_the_readme_has_the_counts_of_today():
    from headedit.specs.catalogue import counts

    assert counts()
    for what, number in counts():
        assert f"| {what} | {number} |" in README
