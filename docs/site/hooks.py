"""What is added to the pages of docs/ when the site is built: the reference, the notebooks, the changelog."""

import logging
import os
import posixpath
import re
import sys
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.plugins import event_priority
from mkdocs.structure.files import File

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path[:0] = [str(HERE), str(ROOT)]

import reference  # noqa: E402  # after the path is set

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
EXAMPLES = "examples.md"
MODELS = "<!-- every type -->"
CHANGELOG = "changelog.md"
HIDDEN = "site/"


def on_config(config: Any) -> Any:
    """Completes the navigation: notebooks, the reference, and pages that it does not name, at its end."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    logging.getLogger("mkdocs_autorefs").setLevel(logging.WARNING)
    config.nav = named(config)
    return config


def named(config: Any) -> list[Any]:
    """The navigation of mkdocs.yml with the pages that are made or found here."""
    nav = [dict(entry) for entry in config.nav]
    tutorials = next(entry["Tutorials"] for entry in nav if "Tutorials" in entry)
    tutorials += [{title_of(path): f"notebooks/{path.name}"} for path in NOTEBOOKS]
    made = [{subject: reference.file_of(subject)} for subject in reference.SUBJECTS]
    files = ["run-yaml", "sweep-yaml", "compare-yaml", "task", "spec"]
    section = {
        "Reference": [
            {"Examples": EXAMPLES},
            *made,
            {"Commands": "reference/commands.md"},
            *(
                {
                    name.replace("-yaml", ".yaml")
                    .replace("task", "Task files")
                    .replace("spec", "Spec files"): f"reference/{name}.md"
                }
                for name in files
            ),
        ]
    }
    at = next(i for i, entry in enumerate(nav) if "Supported models" in entry)
    nav.insert(at, section)
    next(entry["Project"] for entry in nav if "Project" in entry).append({"Changes": CHANGELOG})
    known = re.findall(r"[\w./-]+\.md", str(nav))
    found = [path.relative_to(HERE.parent).as_posix() for path in sorted(HERE.parent.rglob("*.md"))]
    more = [name for name in found if name not in known and not name.startswith(HIDDEN)]
    if more:
        nav.append({"More": [{heading_of(HERE.parent / name): name} for name in more]})
    return nav


def heading_of(page: Path) -> str:
    """The title of a page."""
    return page.read_text(encoding="utf-8").splitlines()[0].removeprefix("# ")


def title_of(notebook: Path) -> str:
    """The title of a notebook, in its first cell."""
    import json

    return json.loads(notebook.read_text(encoding="utf-8"))["cells"][0]["source"][0].strip().removeprefix("# ")


@event_priority(100)
def on_files(files: Any, config: Any) -> Any:
    """Adds the pages that are made from the code, the notebooks, the changelog and the pictures."""
    for path in NOTEBOOKS:
        files.append(File(f"notebooks/{path.name}", str(ROOT), config.site_dir, config.use_directory_urls))
    for path in sorted((ROOT / ".github").glob("*.png")):
        files.append(File.generated(config, f"pictures/{path.name}", abs_src_path=str(path)))
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    try:
        pages = {
            **reference.api_pages(),
            **reference.key_pages(),
            "reference/commands.md": reference.command_page(),
            CHANGELOG: changes,
        }
    except reference.Incomplete as error:
        raise PluginError(str(error)) from None
    for name, text in pages.items():
        files.append(File.generated(config, name, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Fills in the table of models, and leads links to files of the checkout to their pages."""
    if MODELS in markdown:
        markdown = markdown.replace(MODELS, reference.model_table())
    folder = posixpath.dirname(page.file.src_uri)

    def led(match: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join("docs", folder, match[2]))
        moved = {"CHANGELOG.md": CHANGELOG, "notebooks": f"notebooks/{NOTEBOOKS[0].name}"}.get(path)
        if path.startswith(("notebooks/", ".github/")):
            moved = path.replace(".github/", "pictures/")
        return match[0] if moved is None else f"{match[1]}({posixpath.relpath(moved, folder or '.')})"

    return re.sub(r"(\])\((\.\./[^)\s]+)\)", led, markdown)
