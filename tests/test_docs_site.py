"""The site of the documentation: links, navigation, and the reference that is made from the code."""

import re
import sys
from pathlib import Path

import pytest
import yaml
from command_lines import commands
from docs_pages import PAGES, README, ROOT, name_of

import headedit
from headedit.specs.registry import all_specs

SITE = ROOT / "docs" / "site"


@pytest.fixture
def reference(monkeypatch):
    """The module that makes the reference."""
    monkeypatch.syspath_prepend(str(SITE))
    import reference

    yield reference
    sys.modules.pop("reference")


def anchors(page: Path) -> set[str]:
    """The names by which a page's headings are reached."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), flags=re.MULTILINE)
    plain = [re.sub(r"[^\w\s-]", "", heading.replace("`", "")).strip().lower() for heading in headings]
    return {re.sub(r"[-\s]+", "-", heading) for heading in plain}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_link_of_a_page_leads_to_a_file_and_a_heading(page):
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_the_navigation_names_every_page_once_and_no_other():
    text = (SITE / "mkdocs.yml").read_text()
    named = re.findall(r": ([\w./-]+\.md)$", text, flags=re.MULTILINE)
    found = [name_of(page).removeprefix("docs/") for page in PAGES if page != README]
    assert len(set(named)) == len(named)
    assert set(named) <= set(found)
    assert yaml.safe_load(re.sub(r"!!python\S*", "", text))["nav"]


def test_every_public_name_is_in_the_reference_with_its_example(reference):
    pages = "\n".join(reference.api_pages().values())
    assert [name for name in headedit.__all__ if name not in pages] == []
    assert sorted(reference.read_examples()) == headedit.__all__


def test_a_public_thing_without_a_docstring_stops_the_site(reference):
    class Bare:
        """A class of headedit with a method that says nothing."""

        def method(self):
            return 1

    Bare.__module__ = "headedit.bare"
    with pytest.raises(reference.Incomplete, match=r"Bare\.method"):
        reference.check_documented("Bare", Bare)


def test_every_command_and_option_is_in_the_reference(reference):
    page = reference.command_page()
    for words, command in commands():
        if words:
            assert f"## headedit {words} " in page
            options = [name for parameter in command.params for name in parameter.opts if name.startswith("--")]
            assert [name for name in options if name != "--help" and f"`{name}`" not in page] == []


def test_every_key_of_every_kind_of_file_is_in_the_reference(reference):
    pages = reference.key_pages()
    assert {Path(name).stem for name in pages} == {"run-yaml", "sweep-yaml", "compare-yaml", "task", "spec"}
    for key in ("learning_rate", "heads", "quantization", "too_long", "report_to", "released_objective"):
        assert f"`{key}`" in pages["reference/run-yaml.md"]


def test_a_key_that_no_docstring_describes_stops_the_site(reference):
    from dataclasses import dataclass

    @dataclass
    class Silent:
        """A section.

        Fields:
            told: something.
        """

        told: int = 1
        untold: int = 2

    with pytest.raises(reference.Incomplete, match="untold"):
        reference.key_rows(Silent)


def test_the_table_of_models_has_a_row_for_every_type(reference):
    rows = re.findall(r"^\| `(\w+)` \|", reference.model_table(), flags=re.MULTILINE)
    assert len(rows) == len(set(rows)) > 150
    assert {"llama", "qwen3", "mamba"} <= set(rows)
    assert [name for name in rows if name not in all_specs()] == []
