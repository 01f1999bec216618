"""The imports of a package as its source says them, whatever their form and wherever they stand.

Nothing is executed. An import inside a function or under ``TYPE_CHECKING`` counts like any other.
"""

import ast
from collections.abc import Iterator
from importlib.util import resolve_name
from pathlib import Path
from typing import NamedTuple

import networkx


class Import(NamedTuple):
    """That one module of a package imports another, and where it says so."""

    importer: str
    imported: str
    place: str  # file:line

    def __str__(self) -> str:
        return f"{self.place}: {self.importer} imports {self.imported}"


def modules_of(package: Path) -> dict[str, Path]:
    """The file of each module; a package's ``__init__.py`` has the package's name."""
    files = sorted(package.rglob("*.py"))
    names = (".".join(file.relative_to(package.parent).with_suffix("").parts) for file in files)
    return {name.removesuffix(".__init__"): file for name, file in zip(names, files, strict=True)}


def imports_of(package: Path) -> list[Import]:
    """All imports of a package's modules by each other.

    Where a file uses ``import_module`` or ``__import__``, each string in it that is a module's name counts as one.
    """
    modules = modules_of(package)
    found = set()
    for importer, file in modules.items():
        tree = ast.parse(file.read_text(encoding="utf-8"))
        parent = importer if file.name == "__init__.py" else importer.rpartition(".")[0]
        named = {(_module_in(modules, name), line) for name, line in names_imported(tree, parent)}
        named |= {(name, line) for name, line in _strings(tree, parent) if name in modules and "." in name}
        where = file.relative_to(package.parent)
        found |= {Import(importer, name, f"{where}:{line}") for name, line in named if name not in ("", importer)}
    return sorted(found)


def names_imported(tree: ast.AST, parent: str) -> Iterator[tuple[str, int]]:
    """The absolute names in import statements, ``a.b`` for ``from a import b``, which may be a module or not."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = resolve_name("." * node.level + (node.module or ""), parent)
            yield from ((f"{base}.{alias.name}", node.lineno) for alias in node.names)


def _strings(tree: ast.AST, parent: str) -> Iterator[tuple[str, int]]:
    """The strings of a file that imports by strings, and the absolute names of the relative ones it imports."""
    nodes = list(ast.walk(tree))
    used = {node.name for node in nodes if isinstance(node, ast.alias)}
    used |= {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    used |= {node.id for node in nodes if isinstance(node, ast.Name)}
    for node in nodes if used & {"import_module", "__import__"} else ():
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value, node.lineno
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            for given in node.args[:1]:
                if isinstance(given, ast.Constant) and given.value.startswith("."):
                    yield resolve_name(given.value, parent), node.lineno


def _module_in(modules: dict[str, Path], name: str) -> str:
    """The module that a name is, or that it is an attribute of; empty where it is of another package."""
    while name and name not in modules:
        name = name.rpartition(".")[0]
    return name


def upward(imports: list[Import], rooms: list[str]) -> list[Import]:
    """The imports of a room by one that stands above it in the list; the package's own top imports all of them."""

    def floor(module: str) -> int:
        return rooms.index(module.split(".")[1]) if "." in module else len(rooms)

    return [found for found in imports if floor(found.imported) > floor(found.importer)]


def circles(imports: list[Import]) -> list[list[Import]]:
    """The imports within each group of modules that all lead to each other."""
    graph = networkx.DiGraph((found.importer, found.imported) for found in imports)
    groups = [group for group in networkx.strongly_connected_components(graph) if len(group) > 1]
    return [[found for found in imports if {found.importer, found.imported} <= group] for group in groups]
