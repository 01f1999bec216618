"""Which spec is found, in which order, and what is said when none or two are."""

import subprocess
import sys
import zipfile
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
from tiny import tiny_model
from torch import nn

import headedit
from headedit import HeadEditError
from headedit.specs import find_spec, registry

ROOT = Path(__file__).resolve().parent.parent


def write(folder, name="mine.yaml", model_type="llama", heads=2):
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    rule = f"{{path: 'layers.{{layer}}.self_attn.o_proj', heads: {heads}}}"
    path.write_text(f"# toy\nmodel_types: [{model_type}]\nsites: {{attention: {rule}}}\n")
    return path


def test_a_spec_is_looked_up_by_path_then_folders_then_packages_then_ours(llama, tmp_path, monkeypatch):
    assert find_spec(llama).source == str(registry.packaged_folder() / "llama.yaml")
    plugin = write(tmp_path / "plugin")
    entry = EntryPoint("toys", "plugin_of_test:FOLDER", registry.ENTRY_POINTS)
    monkeypatch.setattr(registry, "entry_points", lambda group: [entry] if group == entry.group else [])
    monkeypatch.setitem(sys.modules, "plugin_of_test", type(sys)("plugin_of_test"))
    sys.modules["plugin_of_test"].FOLDER = str(plugin.parent)
    assert find_spec(llama).source == str(plugin)
    user = write(tmp_path / "user")
    monkeypatch.setenv("HEADEDIT_SPECS", str(user.parent))
    assert find_spec(llama).source == str(user)
    given = write(tmp_path / "given", "given.yaml", heads=8)
    assert headedit.attach(llama, spec=given).sites[0].heads == 8


def test_an_entry_point_that_fails_is_named(llama, monkeypatch):
    entry = EntryPoint("toys", "no_such_package:FOLDER", registry.ENTRY_POINTS)
    monkeypatch.setattr(registry, "entry_points", lambda group: [entry])
    with pytest.raises(
        HeadEditError, match=r"'toys' \(no_such_package:FOLDER\).*ModuleNotFoundError.*Mend or uninstall"
    ):
        find_spec(llama)


def test_one_type_in_two_files_names_both(llama, tmp_path, monkeypatch):
    first, second = write(tmp_path, "a.yaml"), write(tmp_path, "b.yaml")
    monkeypatch.setenv("HEADEDIT_SPECS", str(tmp_path))
    with pytest.raises(HeadEditError, match="described twice") as caught:
        find_spec(llama)
    assert str(first) in str(caught.value)
    assert str(second) in str(caught.value)


def test_the_error_for_an_unknown_type_names_the_nearest_type_and_the_commands(llama):
    llama.config.model_type = "lama"
    with pytest.raises(
        HeadEditError, match=r"model type 'lama'\. Did you mean 'llama'\?.*spec draft.*spec check.*spec='lama\.yaml'"
    ):
        headedit.attach(llama)
    assert not hasattr(llama, "headedit")


def test_a_spec_for_another_type_is_refused(llama, tmp_path):
    path = write(tmp_path, model_type="toy")
    with pytest.raises(HeadEditError, match=r"lists toy, but this model is of type 'llama'.*Add 'llama'"):
        headedit.attach(llama, spec=path)


def test_a_folder_of_specs_that_does_not_exist_is_an_error(llama, monkeypatch):
    monkeypatch.setenv("HEADEDIT_SPECS", "/nowhere")
    with pytest.raises(HeadEditError, match="HEADEDIT_SPECS names /nowhere, which is not a folder"):
        find_spec(llama)


def test_an_object_that_is_not_a_transformers_model_is_refused():
    with pytest.raises(HeadEditError, match=r"Expected a transformers model with config\.model_type, found Linear"):
        headedit.attach(nn.Linear(2, 2))


def test_the_wheel_carries_the_specs_and_finds_them(tmp_path):
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    wheel = next(tmp_path.glob("headedit-*.whl"))
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        archive.extractall(tmp_path / "installed")
    assert {f"headedit/arch_specs/{p.name}" for p in (ROOT / "arch_specs").iterdir()} <= names
    assert {"headedit/py.typed", "headedit/demo/model/model.safetensors"} <= names
    packaged = {p.relative_to(ROOT).as_posix() for p in (ROOT / "headedit").rglob("*.*") if p.suffix != ".pyc"}
    assert {Path(name).suffix for name in packaged} >= {".py", ".yaml", ".html", ".css", ".js", ".jsonl", ".typed"}
    assert packaged <= names
    assert not any(name.startswith(("tests/", "arch_specs/")) for name in names)
    code = "from headedit.specs import registry; print(registry.packaged_folder(), len(registry.packaged_specs()))"
    command = [sys.executable, "-P", "-c", f"import sys; sys.path.insert(0, {str(tmp_path / 'installed')!r}); {code}"]
    printed = subprocess.run(command, check=True, capture_output=True, text=True, cwd=tmp_path).stdout.split()
    assert printed == [str(tmp_path / "installed/headedit/arch_specs"), str(len(registry.packaged_specs()))]


def test_the_model_type_is_read_from_the_config_not_from_the_class():
    assert registry.model_type_of(tiny_model("gemma3")) == "gemma3"
