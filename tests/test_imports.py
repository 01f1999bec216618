"""The house: imports flow one way, in no circle, between rooms that one list names; and files stay small."""

from pathlib import Path

import pytest
from import_graph import Import, circles, imports_of, modules_of, upward

ROOMS = [  # each imports only from those before it
    "errors",
    "version",
    "io",
    "hf",
    "specs",
    "data",
    "edits",
    "serving",
    "runs",
    "checks",
    "training",
    "evaluation",
    "interpret",
    "bench",
    "demo",
    "cli",
    "__main__",
]
MOST_ROOMS = 17
MOST_LINES = 300
PACKAGE = Path(__file__).resolve().parent.parent / "headedit"


@pytest.fixture(scope="module")
def imports():
    return imports_of(PACKAGE)


def entries(package: Path) -> set[str]:
    """The rooms and files on the top floor of a package, beside its own ``__init__.py`` and its typing marker."""
    named = {path.stem if path.suffix == ".py" else path.name for path in package.iterdir()}
    return named - {"__init__", "__pycache__", "py.typed"}


def reported(imports: list[Import]) -> str:
    return "\n".join(map(str, imports))


def test_every_room_on_disk_is_in_the_list_of_rooms():
    assert entries(PACKAGE) - set(ROOMS) == set()
    assert len(ROOMS) == len(set(ROOMS)) <= MOST_ROOMS


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_rooms_before_it_in_the_list(room, imports):
    found = [found for found in upward(imports, ROOMS) if found.importer.split(".")[1] == room]
    assert not found, reported(found)


def test_no_files_import_each_other_in_a_circle(imports):
    found = [found for circle in circles(imports) for found in circle]
    assert not found, reported(found)


def test_the_imports_of_the_package_are_seen(imports):
    assert {("headedit.__main__", "headedit.cli.main")} <= {(found.importer, found.imported) for found in imports}
    assert len({found.importer for found in imports}) > len(modules_of(PACKAGE)) / 2


def test_no_file_of_the_package_has_outgrown_its_one_idea():
    lines = {file: len(file.read_text(encoding="utf-8").splitlines()) for file in modules_of(PACKAGE).values()}
    assert lines
    assert {str(file.relative_to(PACKAGE)): n for file, n in lines.items() if n > MOST_LINES} == {}


# The checks above can fail: each form of import, planted where it is a breach, is reported with its file and line.


def plant(folder: Path, files: dict[str, str]) -> Path:
    """A package ``house`` with the rooms errors, edits and cli, and these files."""
    package = folder / "house"
    for path in ("__init__.py", "errors.py", "edits/__init__.py", "edits/gates.py", "cli/__init__.py", "cli/main.py"):
        files = {path: "", **files}
    for path, text in files.items():
        (package / path).parent.mkdir(parents=True, exist_ok=True)
        (package / path).write_text(text)
    return package


FORMS = {
    "import a.b": ("import house.cli.main", "cli.main"),
    "import a.b as c": ("import house.cli.main as m", "cli.main"),
    "import among others": ("import os, house.cli.main", "cli.main"),
    "from a import b, a module": ("from house.cli import main", "cli.main"),
    "from a import b, a room": ("from house import cli", "cli"),
    "from a.b import c, a name": ("from house.cli.main import run", "cli.main"),
    "from a import b, a name of a room": ("from house.cli import run", "cli"),
    "from a import *": ("from house.cli import *", "cli"),
    "the package's own names": ("from house import attach", ""),
    "the package itself": ("import house", ""),
    "relative, a room": ("from .. import cli", "cli"),
    "relative, a module": ("from ..cli import main as m", "cli.main"),
    "relative, a name": ("from ..cli.main import run", "cli.main"),
    "in a function": ("def f():\n    from house.cli import main", "cli.main"),
    "in a method": ("class A:\n    def f(self):\n        import house.cli.main", "cli.main"),
    "for types alone": (
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from house.cli import main",
        "cli.main",
    ),
    "in a try": ("try:\n    import house.cli\nexcept ImportError:\n    pass", "cli"),
    "importlib": ("import importlib\nm = importlib.import_module('house.cli.main')", "cli.main"),
    "import_module": ("from importlib import import_module\nm = import_module('house.cli')", "cli"),
    "import_module by another name": ("from importlib import import_module as get\nm = get(name='house.cli')", "cli"),
    "import_module, relative": ("import importlib\nm = importlib.import_module('..cli', __package__)", "cli"),
    "__import__": ("m = __import__('house.cli.main')", "cli.main"),
    "a table of names": ("from importlib import import_module\nm = [import_module(n) for n in ('house.cli',)]", "cli"),
}


@pytest.mark.parametrize("form", FORMS)
def test_an_upward_import_of_any_form_is_reported_with_its_line(form, tmp_path):
    text, target = FORMS[form]
    package = plant(tmp_path, {"edits/gates.py": f"from house.errors import Oops\n{text}\n"})
    (found,) = upward(imports_of(package), ["errors", "edits", "cli"])
    line = 2 + next(i for i, said in enumerate(text.split("\n")) if "house" in said or "cli" in said)
    assert str(found) == f"house/edits/gates.py:{line}: house.edits.gates imports {f'house.{target}'.rstrip('.')}"


def test_an_upward_import_by_a_rooms_own_init_is_reported(tmp_path):
    package = plant(tmp_path, {"edits/__init__.py": "from ..cli.main import run\n"})
    (found,) = upward(imports_of(package), ["errors", "edits", "cli"])
    assert str(found) == "house/edits/__init__.py:1: house.edits imports house.cli.main"


def test_an_upward_import_by_a_room_that_is_one_file_is_reported(tmp_path):
    package = plant(tmp_path, {"errors.py": "from .edits import gates\n"})
    (found,) = upward(imports_of(package), ["errors", "edits", "cli"])
    assert str(found) == "house/errors.py:1: house.errors imports house.edits.gates"


def test_imports_downwards_and_of_other_packages_are_no_breach(tmp_path):
    package = plant(
        tmp_path,
        {
            "__init__.py": "from house.cli import main\n",
            "edits/gates.py": "import os.path\nfrom houses.cli import main\nfrom house import errors\n",
            "cli/main.py": "from house.edits.gates import open\nimport house.errors\n",
        },
    )
    imports = imports_of(package)
    assert len(imports) == 4
    assert upward(imports, ["errors", "edits", "cli"]) == []
    assert circles(imports) == []


CIRCLES = {
    "of two files": {"edits/a.py": "from house.edits import b", "edits/b.py": "import house.edits.a"},
    "of three files": {
        "edits/a.py": "from house.edits.b import f",
        "edits/b.py": "from .c import f",
        "edits/c.py": "from . import a",
    },
    "for types alone": {
        "edits/a.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from house.edits.b import B",
        "edits/b.py": "from house.edits.a import f",
    },
    "in functions": {
        "edits/a.py": "def f():\n    from house.edits import b",
        "edits/b.py": "def g():\n    from house.edits.a import f",
    },
    "through a package's init": {"edits/__init__.py": "from house.edits.a import f", "edits/a.py": "from . import g"},
    "between rooms": {"edits/a.py": "import house.cli.main", "cli/main.py": "from house.edits.a import f"},
    "through the package itself": {"__init__.py": "from house.edits.a import f", "edits/a.py": "import house"},
}


@pytest.mark.parametrize("kind", CIRCLES)
def test_a_circle_is_reported_with_each_of_its_imports(kind, tmp_path):
    planted = {**CIRCLES[kind], "errors.py": "", "edits/apart.py": "from house.edits.a import f"}
    (circle,) = circles(imports_of(plant(tmp_path, planted)))
    places = {f"house/{file}:{text.count(chr(10)) + 1}" for file, text in CIRCLES[kind].items()}
    assert {found.place for found in circle} == places
    assert len(circle) == len(places)


def test_a_room_that_the_list_lacks_is_seen(tmp_path):
    package = plant(tmp_path, {"loose.py": "", "py.typed": "", "attic/notes.txt": ""})
    assert entries(package) - {"errors", "edits", "cli"} == {"loose", "attic"}
