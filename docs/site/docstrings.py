"""Docstrings as the reference shows them: with the example of each public name, and with fields as a list."""

import re
import sys
from pathlib import Path
from typing import Any

import griffe

sys.path.insert(0, str(Path(__file__).resolve().parent))

from reference import SUBJECTS, read_examples

PUBLIC = {name for names in SUBJECTS.values() for name in names.split()}
EXAMPLES = read_examples()
HEADINGS = ("Fields", "Class attributes", "Exactly one source is given", "Formats")


class Docstrings(griffe.Extension):
    """Changes docstrings before they are parsed."""

    def on_instance(self, *, node: Any, obj: griffe.Object, agent: Any, **kwargs: Any) -> None:
        """Puts the example of a public name behind the first sentence, and lists fields."""
        if obj.docstring is None or not obj.path.startswith("headedit."):
            return
        text = re.sub(r"^>>> .*\n(?:\.\.\. .*\n)*", "", obj.docstring.value, flags=re.MULTILINE)
        if obj.name in PUBLIC and (obj.is_function or obj.is_class) and obj.parent is not None and obj.parent.is_module:
            first, _, rest = text.partition("\n\n")
            text = f"{first}\n\n```python\n{EXAMPLES[obj.name]}```\n\n{rest}"
        obj.docstring.value = fields_as_list(text)


def fields_as_list(text: str) -> str:
    """A docstring in which the section of fields is a list in Markdown."""
    lines, inside = [], False
    for line in text.splitlines():
        heading = re.match(rf"({'|'.join(HEADINGS)}):$", line)
        if heading:
            inside = True
            lines += [f"**{heading[1]}:**", ""]
            continue
        if inside and line and not line.startswith(" "):
            inside = False
        entry = re.match(r" {4}([\w, ]+?): (.*)", line) if inside else None
        if entry:
            names = ", ".join(f"`{name}`" for name in entry[1].split(", "))
            lines.append(f"- {names} – {entry[2]}")
        else:
            lines.append(line[4:] if inside and line.startswith("        ") else line)
    return "\n".join(lines)
