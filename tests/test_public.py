"""The public names: light to import, complete and documented."""

import doctest
import inspect
import subprocess
import sys

import pytest

import headedit

LATE = ("torch", "transformers", "matplotlib", "datasets", "pandas", "nnsight", "bitsandbytes", "accelerate", "einops")


@pytest.mark.parametrize("module", ["headedit", "headedit.cli.main"])
def test_importing_loads_no_large_library(module):
    code = f"import {module}, sys; print([name for name in {LATE} if name in sys.modules])"
    printed = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert printed.strip() == "[]"


def test_everything_public_works_without_what_only_some_functions_need():
    """On a machine that lacks these libraries, all public names load, and an edit is attached."""
    code = """
import sys
sys.modules |= dict.fromkeys(["nnsight", "bitsandbytes", "datasets", "pandas", "peft", "trl"])
import headedit
[getattr(headedit, name) for name in headedit.__all__]
import headedit.cli.main, headedit.demo.run
from headedit.demo import MODEL_FOLDER
from headedit.hf.loading import load_model
headedit.attach(load_model(str(MODEL_FOLDER), device="cpu"))
"""
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_public_name_exists_and_is_documented():
    assert headedit.__all__ == sorted(headedit.__all__)
    assert dir(headedit) == headedit.__all__
    for name in headedit.__all__:
        thing = getattr(headedit, name)
        assert name == "__version__" or inspect.getdoc(thing), name
    with pytest.raises(AttributeError, match="has no attribute 'atach'"):
        _ = headedit.atach


def test_the_handles_public_methods_are_documented():
    public = {name: member for name, member in inspect.getmembers(headedit.HeadEdits) if not name.startswith("_")}
    assert "detach" in public
    assert [name for name, member in public.items() if not inspect.getdoc(member)] == []


def test_the_examples_in_docstrings_hold():
    assert doctest.testmod(headedit).attempted > 0
    assert doctest.testmod(headedit).failed == 0
