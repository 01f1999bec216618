"""What is known of where heads are: the list, its counts, the JSON schema, and the commands that show them."""

import json

import jsonschema
import pytest
import yaml
from test_cli import run
from test_schema import GOOD
from zoo import WITHOUT_HEADS, ZOO

from headedit.specs.catalogue import catalogue, counts
from headedit.specs.json_schema import json_schema
from headedit.specs.registry import packaged_folder

EDITED = len(ZOO) - len(WITHOUT_HEADS)


def test_the_counts_cover_every_causal_lm_of_transformers():
    known = dict(counts())
    assert known["causal-LM types of transformers"] == str(len(ZOO))
    assert known["edited"] == str(EDITED)
    assert known["refused, with the reason"] == f"4: {', '.join(WITHOUT_HEADS)}"
    assert known["without a spec"] == "0"
    merging = ("whose projection has a bias", "whose config can give", "that merge by", "that cannot merge")
    assert sum(int(n) for what, n in known.items() if what.startswith(merging)) == EDITED


def test_the_catalogue_lists_every_file_and_a_users_spec_in_place_of_ours(tmp_path, monkeypatch):
    files = {entry.spec.source for entry in catalogue()}
    assert files == {str(path) for path in packaged_folder().glob("*.yaml")}
    mine = tmp_path / "mine.yaml"
    mine.write_text("model_types: [qwen3, toy]\nsites: {attention: {path: 'layers.{layer}.o', heads: 4}}")
    monkeypatch.setenv("HEADEDIT_SPECS", str(tmp_path))
    listed = {entry.spec.source: entry.model_types for entry in catalogue()}
    assert listed[str(mine)] == ["qwen3", "toy"]
    assert "qwen3" not in listed[str(packaged_folder() / "qwen3.yaml")]


def test_the_json_schema_accepts_what_the_reader_accepts():
    schema = json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    for path in packaged_folder().glob("*.yaml"):
        validator.validate(yaml.safe_load(path.read_text()))
    validator.validate(yaml.safe_load(GOOD))
    for old, new in (("sites:", "site:"), ("heads: 4", "heads: [4]"), ("position: gated", "position: on")):
        with pytest.raises(jsonschema.ValidationError):
            validator.validate(yaml.safe_load(GOOD.replace(old, new)))
    with pytest.raises(jsonschema.ValidationError):
        validator.validate({"model_types": ["toy"], "sites": {"atention": {"path": "a", "heads": 1}}})


def test_spec_list_and_spec_show_print_the_catalogue(capsys):
    assert run("spec", "list", "--types") == 0
    printed = capsys.readouterr().out
    assert "mistral.yaml" in printed
    assert f"edited: {EDITED}" in printed
    assert run("spec", "list", "--markdown") == 0
    assert f"| edited | {EDITED} |" in capsys.readouterr().out
    assert run("spec", "show", "qwen3") == 0
    assert capsys.readouterr().out.endswith((packaged_folder() / "qwen3.yaml").read_text())
    assert run("spec", "show", "qwen33") == 2
    assert "Did you mean 'qwen3'?" in capsys.readouterr().err
    assert run("spec", "schema") == 0
    assert json.loads(capsys.readouterr().out) == json_schema()


@pytest.mark.parametrize("command", ["list", "show", "check", "draft", "schema"])
def test_the_help_of_every_command_has_an_example(command, capsys):
    assert run("spec", command, "--help") == 0
    assert f"headedit spec {command}" in capsys.readouterr().out
