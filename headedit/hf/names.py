"""The name of a model without the folders of the machine that it was loaded on."""

import os
import re
from pathlib import PureWindowsPath
from urllib.parse import unquote, urlsplit

_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
_IN_CACHE = re.compile(r"(?:^|/)models--([\w.-]+?)(?:--([\w.-]+))?/snapshots/")


def is_hub_id(name: str) -> bool:
    """Whether a name reads as the id of a hub repository, ``name`` or ``owner/name``, and is no folder here."""
    looks_like_one = _HUB_ID.fullmatch(name) is not None and name.strip(".") != "" and name[0] not in ".-"
    return looks_like_one and not os.path.exists(name)


def portable_name(name_or_path: object) -> str:
    """The name of a model as it can be saved and published: a hub id as it is, of a path its last part.

    A snapshot in the hub's cache has the id of its repository. Empty for an empty name and for a path without a name,
    such as ``/`` and ``~``.
    """
    name = str(name_or_path or "")
    if is_hub_id(name):
        return name
    if re.match(r"[A-Za-z][\w+.-]+://", name) or name.startswith("file:"):
        name = unquote(urlsplit(name).path)
    if name and set(name) <= set("./\\"):
        name = os.path.abspath(name)  # such as ".", which has no name of its own
    parts = re.split(r"[/\\]+", name.replace("\0", ""))
    cached = _IN_CACHE.search("/".join(parts))
    if cached is not None:
        return "/".join(part for part in cached.groups() if part)
    named = [part for part in parts if part not in ("", ".", "..")]
    last = named[-1] if named else ""
    return "" if last.startswith("~") or last == PureWindowsPath(last).drive != "" else last
