"""The files around the code: how to cite it, the workflow, the forms for issues; and what a release consists of."""

import re
import tarfile
import zipfile
from pathlib import Path

import pytest
import yaml
from hatchling.builders.sdist import SdistBuilder
from hatchling.builders.wheel import WheelBuilder
from packaging.specifiers import SpecifierSet
from packaging.version import Version

import headedit

tomllib = pytest.importorskip("tomllib")

ROOT = Path(__file__).resolve().parent.parent
GITHUB = ROOT / ".github"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PAPER = "2502.01179"


def files_in(folder: Path) -> set[str]:
    """The files of a folder and below, but for what Python and editors leave there, relative to the root."""
    left = ("__pycache__", ".ipynb_checkpoints")
    return {
        path.relative_to(ROOT).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and not any(part in left for part in path.parts)
    }


@pytest.fixture(scope="module")
def citation():
    return yaml.safe_load((ROOT / "CITATION.cff").read_text())


@pytest.fixture(scope="module")
def sdist(tmp_path_factory):
    """The files of the source distribution, unpacked."""
    folder = tmp_path_factory.mktemp("sdist")
    with tarfile.open(next(SdistBuilder(str(ROOT)).build(directory=str(folder)))) as archive:
        archive.extractall(folder)
    return folder / f"headedit-{headedit.__version__}"


def wheel_of(root: Path, folder: Path) -> set[str]:
    """The names of the files in the wheel that is built from a folder with the project."""
    with zipfile.ZipFile(next(WheelBuilder(str(root)).build(directory=str(folder), versions=["standard"]))) as archive:
        return set(archive.namelist())


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    return wheel_of(ROOT, tmp_path_factory.mktemp("wheel"))


def test_the_citation_has_the_version_and_the_license_of_the_package(citation):
    assert citation["version"] == headedit.__version__
    assert citation["license"] == PROJECT["license"]
    assert {"cff-version", "message", "title", "authors"} <= set(citation)


def test_the_citation_and_the_bibtex_of_the_docs_name_the_same_works(citation):
    software, paper = re.findall(r"^@\w+\{(.*?)^\}", (ROOT / "docs" / "citing.md").read_text(), re.M | re.S)
    assert f"title   = {{{citation['title']}}}" in software
    assert f"version = {{{headedit.__version__}}}" in software
    (reference,) = citation["references"]
    authors = " and ".join(f"{author['family-names']}, {author['given-names']}" for author in reference["authors"])
    for value in (reference["title"], authors, str(reference["year"]), PAPER, reference["url"]):
        assert f"= {{{value}}}" in paper
    assert reference["url"] == PROJECT["urls"]["Paper"] == f"https://arxiv.org/abs/{PAPER}"


def test_readme_docs_and_classifiers_ask_for_the_python_that_the_package_does():
    lowest = PROJECT["requires-python"].removeprefix(">=")
    for page in ("README.md", "docs/index.md"):
        assert f"Python {lowest} or newer" in (ROOT / page).read_text()
    minors = re.findall(r"Python :: (3\.\d+)", str(PROJECT["classifiers"]))
    assert minors[0] == lowest
    assert minors == sorted(minors, key=Version)


def test_every_classifier_is_one_of_the_registrys():
    known = pytest.importorskip("trove_classifiers").classifiers
    assert set(PROJECT["classifiers"]) <= known


def test_the_workflow_runs_what_ci_runs_and_builds_docs_and_distributions():
    (job,) = yaml.safe_load((GITHUB / "workflows" / "ci.yml").read_text())["jobs"].values()
    commands = [step["run"] for step in job["steps"] if "run" in step]
    assert commands == [".ci/run", "make docs", ".venv/bin/python -m build"]
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o100
    pythons = job["strategy"]["matrix"]["python"]
    assert pythons == ["3.11", "3.12", "3.13"]
    assert all(SpecifierSet(PROJECT["requires-python"]).contains(version) for version in pythons)


@pytest.mark.parametrize("file", sorted(GITHUB.glob("ISSUE_TEMPLATE/[!c]*.yml")), ids=lambda file: file.stem)
def test_a_form_for_issues_has_what_the_platform_requires(file):
    form = yaml.safe_load(file.read_text())
    assert form["name"]
    assert form["description"]
    ids = [field["id"] for field in form["body"]]
    assert len(set(ids)) == len(ids)
    assert all(field["type"] in {"textarea", "input"} and field["attributes"]["label"] for field in form["body"])


@pytest.mark.parametrize("page", sorted(GITHUB.glob("*.md")), ids=lambda page: page.stem)
def test_links_of_the_pages_for_contributors_lead_to_files(page):
    links = [link for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()) if "://" not in link]
    assert all((page.parent / link).is_file() for link in links), links


def test_the_wheel_has_every_file_of_the_package_and_every_spec(wheel):
    specs = {f"headedit/{name}" for name in files_in(ROOT / "arch_specs")}
    assert files_in(ROOT / "headedit") | specs <= wheel
    assert {name.split("/")[0] for name in wheel} == {"headedit", f"headedit-{headedit.__version__}.dist-info"}


@pytest.mark.parametrize(
    "files",
    [
        r"training/config/shipped/.*\.yaml",
        r"training/config/tune/.*\.yaml",
        r"training/sweep/shipped/.*\.yaml",
        r"training/preferences/shipped/.*\.yaml",
        r"evaluation/tasks/shipped/.*\.yaml",
        r"evaluation/reports/.*\.(json|jsonl|yaml)",
        r"interpret/report/.*\.(css|js|html)",
        r"arch_specs/llama\.yaml",
        r"demo/model/model\.safetensors",
        r"demo/model/tokenizer\.json",
        r"errors\.md",
        r"py\.typed",
    ],
)
def test_the_wheel_has_what_is_read_beside_code(files, wheel):
    assert any(re.fullmatch(f"headedit/{files}", name) for name in wheel)


def test_the_source_distribution_has_everything_that_its_tests_read(sdist):
    packed = {path.relative_to(sdist).as_posix() for path in sdist.rglob("*") if path.is_file()}
    read = {"headedit", "arch_specs", "notebooks", "tests", "docs", ".github", ".ci"}
    for test in (ROOT / "tests").rglob("*.py"):
        read |= set(re.findall(r'\b(?:ROOT|parent\.parent) / "([^"]+)"', test.read_text()))
    for name in filter(lambda name: (ROOT / name).exists(), read):
        found = files_in(ROOT / name) if (ROOT / name).is_dir() else {name}
        assert found <= packed, sorted(found - packed)[:3]


def test_the_wheel_of_the_source_distribution_is_that_of_the_checkout(sdist, wheel, tmp_path):
    assert wheel_of(sdist, tmp_path) == wheel
