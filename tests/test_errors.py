"""Every error belongs to a family with its causes and remedies on the page of errors, and names it."""

import ast
import copy
import pickle
import re
from pathlib import Path

import pytest
from docs_pages import ROOT
from import_graph import modules_of

import headedit
from headedit import HeadEditError
from headedit.cli.errors import explanation, slug
from headedit.cli.main import main
from headedit.errors import FAMILIES, family_of
from headedit.io.json import parse_json
from headedit.io.strict import read_assignments

PAGE = (ROOT / "docs" / "errors.md").read_text()
MODULES = modules_of(ROOT / "headedit")
NO_ERROR = "so they were taken out: the model is the unedited one."
"""A message of the page that is printed with exit code 3, and not an error."""


def texts_of(file: Path) -> str:
    """Every text in a file of code, with a mark where values are put in."""
    found = []
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.JoinedStr):
            found.append("\x00".join(part.value for part in node.values if is_text(part)))
        elif is_text(node):
            found.append(node.value)
    return "\n".join(found)


def is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def quoted_messages() -> list[tuple[str, str]]:
    """The messages on the page, each with the family under which it stands."""
    found = []
    for part in re.split(r"^## ", PAGE, flags=re.MULTILINE)[1:]:
        title, _, body = part.partition("\n")
        for line in re.findall(r"^\*[^*].*\*$", re.sub(r"(?<!\n)\n(?!\n)", " ", body.strip()), flags=re.MULTILINE):
            found += [(slug(title), text) for text in re.findall(r"\*([^*]+)\*", line)]
    return found


QUOTED = quoted_messages()
CODE = {module: texts_of(file) for module, file in MODULES.items()}


@pytest.mark.parametrize(("family", "message"), QUOTED, ids=[message for _, message in QUOTED])
def test_every_message_on_the_page_is_one_of_the_code_and_of_its_family(family, message):
    parts = [part.strip() for part in re.split(r"…|'[^']*'|\d+|`[^`]*`", message) if len(part.strip()) > 6]
    holders = [module for module, texts in CODE.items() if all(part in texts for part in parts)]
    assert holders
    found = {family_of(module, message) for module in holders}
    assert family in found or found == {None} or message == NO_ERROR


def test_the_page_has_enough_messages_of_every_family():
    assert len(QUOTED) > 60
    assert {family for family, _ in QUOTED} == set(FAMILIES)


def test_the_headings_of_the_page_are_the_families():
    assert [slug(title) for title in re.findall(r"^## (.*)$", PAGE, flags=re.MULTILINE)] == list(FAMILIES)


def test_every_module_of_a_family_is_there_and_every_family_is_raised():
    named = {f"headedit.{module}" for modules in FAMILIES.values() for module in modules}
    assert sorted(named - set(MODULES)) == []
    raising = {family_of(module) for module, file in MODULES.items() if "raise HeadEditError(" in file.read_text()}
    assert set(FAMILIES) - raising == set()


def test_only_shared_modules_leave_the_family_to_their_caller():
    none = {name for name, file in MODULES.items() if "HeadEditError(" in file.read_text() and family_of(name) is None}
    assert {name.rpartition(".")[0] for name in none} <= {"headedit", "headedit.io"}


def caught(call) -> HeadEditError:
    with pytest.raises(HeadEditError) as found:
        call()
    return found.value


def test_an_argument_out_of_its_range_is_of_the_settings_wherever_it_is_refused():
    assert family_of("headedit.interpret.evidence.iti", "heads: found 0, expected 1 to 32.") == "settings"
    assert family_of("headedit.interpret.evidence.iti", "There is nothing to probe with.") == "evidence-and-plots"
    assert family_of("headedit.data.formats", "train.jsonl, line 3: found the fields a; expected b.") == "data"


def test_a_module_within_another_has_the_family_where_it_is_named_itself():
    assert family_of("headedit.edits.handle") == "edits-on-a-model"
    assert family_of("headedit.edits.files.format") == "saved-edits"
    assert family_of("headedit.training.config.reading") == "settings"
    assert family_of("torch.nn") is None


def test_an_error_has_the_family_of_the_innermost_module_that_has_one():
    caller = {"__name__": "headedit.data.sources", "read_assignments": read_assignments, "parse_json": parse_json}
    assert caught(lambda: eval("read_assignments(['x'])", caller)).family == "settings"
    assert caught(lambda: eval("parse_json('{', 'here')", caller)).family == "data"


def test_an_error_that_headedit_did_not_make_has_no_family():
    assert HeadEditError("mine").family is None
    assert HeadEditError().family is None


def test_a_copied_or_pickled_error_keeps_its_family_and_message():
    error = caught(lambda: headedit.EditConfig(gates="?"))
    for other in (copy.copy(error), pickle.loads(pickle.dumps(error))):
        assert (other.family, str(other)) == ("settings", str(error))


def run(words: str, capsys) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main(words.split())
    printed = capsys.readouterr()
    return ended.value.code, printed.out, printed.err


def test_the_command_line_names_the_family_after_the_message(capsys, tmp_path):
    code, _, told = run(f"report {tmp_path / 'nothing'}", capsys)
    assert code == 2
    *message, last = told.strip().split("\n")
    assert message[0].startswith("headedit: ")
    assert run(last.removeprefix("To read more: headedit "), capsys)[0] == 0


def test_the_command_errors_prints_the_part_of_the_page(capsys):
    code, shown, _ = run("errors saved-edits", capsys)
    assert code == 0
    assert "these edits were made for another model" in shown
    assert "headedit errors" not in shown
    assert run("errors", capsys)[1].split() == list(FAMILIES)
    code, _, told = run("errors saved-edit", capsys)
    assert code == 2
    assert "Did you mean 'saved-edits'?" in told


@pytest.mark.parametrize("family", FAMILIES)
def test_the_explanation_of_a_family_has_words_and_no_links(family):
    text = explanation(family)
    assert len(text.split()) > 12
    assert "](" not in text
