"""The name of a model without the folders of the machine that it was loaded on."""

import os
import re
from urllib.parse import unquote, urlsplit

_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
_IN_CACHE = re.compile(r"(?:^|/)models--([\w.-]+?)(?:--([\w.-]+))?/snapshots/")


def hub_id(name_or_path: object) -> str | None:
    """The id of a hub repository, ``name`` or ``owner/name``, or of a snapshot in the hub's cache; None for others.

    A name that is a folder or file here is none, as transformers would load that.
    """
    name = str(name_or_path or "")
    cached = _IN_CACHE.search(re.sub(r"[/\\]+", "/", name))
    if cached is not None:
        return "/".join(part for part in cached.groups() if part)
    looks_like_one = _HUB_ID.fullmatch(name) is not None and name[0] not in ".-~"
    return name if looks_like_one and not os.path.exists(name) else None


def portable_name(name_or_path: object) -> str:
    """The name of a model as it can be saved and published: a hub id as it is, of a path its last part.

    Empty for an empty name and for a path without a name, such as ``/`` and ``~``.
    """
    name, known = str(name_or_path or ""), hub_id(name_or_path)
    if known is not None:
        return known
    if re.match(r"[A-Za-z][\w+.-]+://", name) or name.startswith("file:"):
        name = unquote(urlsplit(name).path)
    if name and set(name) <= set("./\\"):
        name = os.path.abspath(name)  # such as ".", which has no name of its own
    named = [part for part in re.split(r"[/\\]+", name) if part not in ("", ".", "..")]
    last = named[-1] if named else ""
    return "" if last.startswith("~") or re.fullmatch(r"[A-Za-z]:", last) else last
