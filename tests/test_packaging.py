"""What an install brings: the libraries that the code imports."""

import ast
import sys
from pathlib import Path

import pytest
from import_graph import modules_of, names_imported
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

tomllib = pytest.importorskip("tomllib")

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = {
    name: {canonicalize_name(Requirement(line).name) for line in lines}
    for name, lines in PROJECT["optional-dependencies"].items()
}
PLAIN = {canonicalize_name(Requirement(line).name) for line in PROJECT["dependencies"]}
DISTRIBUTIONS = {"yaml": "pyyaml", "lm_eval": "lm-eval"}  # where a module has another name


@pytest.mark.parametrize(
    "library",
    [
        "torch",
        "transformers",
        "nnsight",
        "einops",
        "datasets",
        "accelerate",
        "matplotlib",
        "bitsandbytes",
        "pandas",
    ],
)
def test_a_plain_install_brings_the_libraries_that_the_readmes_commands_need(library):
    assert library in PLAIN


def test_every_library_that_the_code_imports_comes_with_an_install_or_an_extra():
    imported = set()
    for module, file in modules_of(ROOT / "headedit").items():
        tree = ast.parse(file.read_text(encoding="utf-8"))
        imported |= {name.split(".")[0] for name, _ in names_imported(tree, module)}
    libraries = imported - set(sys.stdlib_module_names) - {"headedit"}
    distributions = {canonicalize_name(DISTRIBUTIONS.get(name, name)) for name in libraries}
    assert {"torch", "pyyaml", "rich"} <= distributions
    assert distributions - PLAIN == {"lm-eval", "torchao", "vllm"}


@pytest.mark.parametrize(
    ("system", "machine", "has_wheel"),
    [
        ("linux", "x86_64", True),
        ("linux", "aarch64", True),
        ("linux", "ppc64le", False),
        ("darwin", "arm64", True),
        ("darwin", "x86_64", False),
        ("win32", "AMD64", True),
    ],
)
def test_bitsandbytes_is_asked_for_only_where_it_has_a_wheel(system, machine, has_wheel):
    lines = [Requirement(line) for line in PROJECT["dependencies"] if line.startswith("bitsandbytes")]
    here = {"sys_platform": system, "platform_machine": machine}
    assert sum(line.marker.evaluate(here) for line in lines) == has_wheel


def test_no_extra_is_empty_or_brings_what_a_plain_install_has():
    assert set(EXTRAS) == {"eval", "bench", "lm-eval", "quantized", "vllm", "docs", "dev"}
    assert all(EXTRAS.values())
    assert [names & PLAIN for names in EXTRAS.values() if names & PLAIN] == []
