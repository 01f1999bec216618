"""The public surface: light to import, complete, documented; the imports flow one way; the README's code runs."""

import ast
import doctest
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import headedit

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()


def test_importing_is_light():
    code = "import headedit, sys; print([m for m in ('torch', 'transformers', 'matplotlib') if m in sys.modules])"
    printed = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert printed.strip() == "[]"


def test_everything_public_works_without_what_is_optional():
    """On a machine that lacks it, all public names load, and an edit is attached."""
    code = """
import sys
sys.modules |= dict.fromkeys(["nnsight", "bitsandbytes", "datasets", "peft", "trl"])
import headedit
[getattr(headedit, name) for name in headedit.__all__]
import headedit.cli.main, headedit.demo.run
from headedit.demo import MODEL_FOLDER
from headedit.hf.loading import load_model
headedit.attach(load_model(str(MODEL_FOLDER), device="cpu"))
"""
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_every_public_name_is_there_and_says_what_it_is():
    assert headedit.__all__ == sorted(headedit.__all__)
    assert dir(headedit) == headedit.__all__
    for name in headedit.__all__:
        thing = getattr(headedit, name)
        assert name == "__version__" or inspect.getdoc(thing), name
    with pytest.raises(AttributeError, match="has no attribute 'atach'"):
        _ = headedit.atach


def test_the_handles_public_methods_are_documented():
    for name, member in inspect.getmembers(headedit.HeadEdits):
        if not name.startswith("_"):
            assert inspect.getdoc(member), name


ROOMS = ("errors", "specs", "edits", "training", "evaluation", "interpret", "demo", "cli")
MAY_IMPORT = {
    "errors": set(),
    "specs": {"errors"},
    "edits": {"specs", "errors"},
    "training": {"specs", "edits", "errors"},
    "evaluation": {"specs", "edits", "errors"},
    "interpret": {"specs", "edits", "errors"},
    "demo": set(ROOMS) - {"cli"},
    "cli": set(ROOMS),
}


def test_imports_flow_one_way():
    package = ROOT / "headedit"
    for file in package.rglob("*.py"):
        room = file.relative_to(package).parts[0].removesuffix(".py")
        if room not in MAY_IMPORT:
            continue
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("headedit."):
                wanted = node.module.split(".")[1]
                assert wanted == room or wanted not in ROOMS or wanted in MAY_IMPORT[room], f"{file}: {node.module}"


def test_docstring_examples_hold():
    assert doctest.testmod(headedit).attempted > 0
    assert doctest.testmod(headedit).failed == 0


def test_the_python_in_the_readme_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert blocks
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), names)
    assert (tmp_path / "gates.png").is_file()
    assert (tmp_path / "history.png").is_file()
    assert "trainable params: 1,088 ||" in capsys.readouterr().out


def test_the_spec_in_the_readme_is_a_spec(tmp_path):
    from headedit.specs import read_spec

    (block,) = re.findall(r"```yaml\n(# my_arch.yaml.*?)```", README, flags=re.DOTALL)
    (tmp_path / "my_arch.yaml").write_text(block)
    spec = read_spec(tmp_path / "my_arch.yaml")
    assert spec.model_types == ["my_arch"]
    assert len(block.strip().splitlines()) <= 10


def test_the_readme_has_the_counts_of_today():
    from headedit.specs.catalogue import counts

    for what, number in counts():
        assert f"| {what} | {number} |" in README
