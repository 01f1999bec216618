"""The scheduled check: which causal-LM types of the newest transformers have no spec."""

import importlib.util
import re

import pytest
import yaml
from docs_pages import ROOT
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from headedit.checks.unknown_types import main
from headedit.specs.catalogue import types_without_spec


def test_new_types_are_listed_with_their_class_and_fail_the_check(monkeypatch, capsys):
    before = types_without_spec()
    monkeypatch.setitem(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, "a_new_type", "ANewTypeForCausalLM")
    assert types_without_spec() == sorted([*before, "a_new_type"])
    assert main() == 1
    printed = capsys.readouterr().out
    assert f": {len(before) + 1} of {len(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)} causal-LM types have no spec." in printed
    assert "a_new_type: ANewTypeForCausalLM" in printed


def test_the_check_passes_where_every_type_has_a_spec(monkeypatch, capsys):
    for model_type in types_without_spec():
        monkeypatch.delitem(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, model_type)
    assert main() == 0
    assert ": 0 of " in capsys.readouterr().out


def test_a_users_spec_counts(monkeypatch, tmp_path):
    monkeypatch.setitem(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, "a_new_type", "ANewTypeForCausalLM")
    (tmp_path / "mine.yaml").write_text(
        "model_types: [a_new_type]\nsites: {attention: {path: 'layers.{layer}.o', heads: 4}}"
    )
    monkeypatch.setenv("HEADEDIT_SPECS", str(tmp_path))
    assert "a_new_type" not in types_without_spec()


def test_the_scheduled_workflow_runs_the_check_with_the_newest_transformers():
    file = ROOT / ".github" / "workflows" / "new-types.yml"
    if not file.exists():
        pytest.skip("this copy has no workflows")
    workflow = yaml.safe_load(file.read_text())
    (schedule,) = workflow[True]["schedule"]  # YAML 1.1 reads the key 'on' as true
    assert re.fullmatch(r"\d+ \d+ \* \* \d", schedule["cron"])
    commands = [step["run"] for step in workflow["jobs"]["list"]["steps"] if "run" in step]
    assert any("--upgrade" in command and "transformers" in command for command in commands)
    module = commands[-1].removeprefix("python -m ")
    assert importlib.util.find_spec(module) is not None
