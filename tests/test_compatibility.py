"""The table of the page "Works with": each row names its tests, and every such test has a row."""

import ast
import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
PAGE = TESTS.parent / "docs" / "works-with.md"


def rows_of(text: str) -> dict[str, list[str]]:
    """The rows of the section's table: what stands in the first column, and the tests that the last one names."""
    section = re.search(r"^# Works with\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    assert section, "the page is not called 'Works with'"
    lines = [line.strip().strip("|").split("|") for line in section[1].splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line] for line in lines]
    header, rule, *rows = cells
    assert (header[0], header[-1]) == ("with", "shown by")
    assert set("".join(rule)) <= set("-:")
    assert all(len(row) == len(header) and all(row) for row in rows), "a row has an empty cell, or too few or many"
    names = [row[0] for row in rows]
    assert len(set(names)) == len(names), "two rows have the same name"
    return {row[0]: re.findall(r"`(test_\w+)`", row[-1]) for row in rows}


def functions_in(pattern: str) -> set[str]:
    """Names of the test functions in some test files."""
    trees = [ast.parse(path.read_text()) for path in TESTS.glob(pattern)]
    defined = [node.name for tree in trees for node in tree.body if isinstance(node, ast.FunctionDef)]
    return {name for name in defined if name.startswith("test_")}


def test_every_row_of_the_table_names_tests_that_exist_and_every_test_has_a_row():
    rows = rows_of(PAGE.read_text())
    assert not [name for name, tests in rows.items() if not tests]
    named = {test for tests in rows.values() for test in tests}
    assert named <= functions_in("test_*.py")
    assert functions_in("test_compat_*.py") <= named


TABLE = "# Works with\n\n| with | shown by |\n|---|---|\n{}\n\n## Next\n| a | b |\n"


def test_a_table_in_the_section_is_read():
    assert rows_of(TABLE.format("| a `b` | `test_c`, `test_d` |\n| e | f |")) == {
        "a `b`": ["test_c", "test_d"],
        "e": [],
    }


@pytest.mark.parametrize("row", ["| a | |", "| a |", "| a | `test_b` |\n| a | `test_c` |"])
def test_a_malformed_table_is_noticed(row):
    with pytest.raises(AssertionError):
        rows_of(TABLE.format(row))
