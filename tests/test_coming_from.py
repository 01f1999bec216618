"""The page for users of other projects: its code runs, its commands parse, its tables are whole."""

import re
import sys
import types
from pathlib import Path

import pytest
from command_lines import commands, parse

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "coming-from.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", PAGE, flags=re.DOTALL | re.MULTILINE)
PYTHON = "\n".join(code for language, code in BLOCKS if language == "python")
COMMANDS = [line for language, code in BLOCKS if language == "bash" for line in code.splitlines() if line]
SECTIONS = re.findall(r"^## (.*)$", PAGE, flags=re.MULTILINE)
TABLES = re.findall(r"(?:^\|.*\n)+", PAGE, flags=re.MULTILINE)


def test_the_python_of_the_page_runs_in_its_order(tmp_path, monkeypatch):
    """From a file, in which nnsight looks up the source of a trace."""
    pytest.importorskip("peft")
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "page.py"
    file.write_text(PYTHON, encoding="utf-8")
    module = types.ModuleType("page")
    module.__file__ = str(file)
    monkeypatch.setitem(sys.modules, "page", module)
    exec(compile(PYTHON, str(file), "exec"), vars(module))
    assert (tmp_path / "jola" / "headedit.safetensors").is_file()
    assert (tmp_path / "as-peft" / "adapter_config.json").is_file()
    assert int(module.sparse.times_trained.sum()) == 12


@pytest.mark.parametrize("line", COMMANDS)
def test_a_command_line_of_the_page_parses(line):
    assert f"headedit {parse(line)}".strip() in line


def test_every_command_that_the_tables_name_exists():
    known = {words.split()[0] for words, _ in commands() if words}
    named = set(re.findall(r"`headedit ([a-z][\w-]*)", PAGE))
    assert {"train", "tune", "import", "eval"} <= named <= known


def test_every_project_has_a_table_of_their_call_and_ours():
    assert len(SECTIONS) == len(TABLES) == 7
    for section, table in zip(SECTIONS, TABLES, strict=True):
        rows = [re.split(r"(?<!\\)\|", line)[1:-1] for line in table.splitlines()]
        assert all(len(row) == 3 for row in rows), section
        assert rows[0][1].strip().startswith("our"), section
        assert len(rows) >= 11, section


def test_the_links_at_the_top_lead_to_the_sections():
    anchors = {re.sub(r"[^\w -]", "", section).lower().replace(" ", "-") for section in SECTIONS}
    assert set(re.findall(r"\]\(#([\w-]+)\)", PAGE)) == anchors
