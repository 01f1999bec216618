"""What is drawn: the model, the task and the recipe of a handle, a run or a folder, as far as they are known."""

import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from os import PathLike
from pathlib import Path
from typing import Any

from headedit.edits import HeadEdits
from headedit.edits.files.storage import read_record
from headedit.errors import HeadEditError
from headedit.hf.names import portable_name
from headedit.io.yaml import read_yaml
from headedit.runs.files import RUN_FILE, RUN_YAML

_PLAIN = ("train", "training", "data", "examples", "")  # names of files that say nothing of a task


def subtitle_of(sources: Iterable[Any]) -> str:
    """Model, task and recipe that all sources have in common, with dots between them; empty where none is known."""
    found = [_names(source) for source in sources]
    if not found:
        return ""
    common = [values[0] for values in zip(*found, strict=True) if len(set(values)) == 1 and values[0]]
    return "  ·  ".join(common)


def _names(source: Any) -> tuple[str, str, str]:
    """Model, task and recipe of a handle, a run, or a folder; empty where they are not known."""
    if isinstance(source, HeadEdits):
        name = portable_name(getattr(source.model.config, "_name_or_path", ""))
        adapter = source.active_adapter
        return name or type(source.model).__name__, "" if adapter == "default" else str(adapter), ""
    folder = source if isinstance(source, str | PathLike) else getattr(source, "output_dir", None)
    record = getattr(source, "record", None)
    model = recipe = task = ""
    if folder is not None:
        place = Path(folder)
        record = _json(place / RUN_FILE) if record is None else record
        with suppress(HeadEditError, OSError):
            model = str(read_record(place)["base_model"].get("name_or_path") or "")
        task = _task(place / RUN_YAML)
    if isinstance(record, Mapping):
        recipe, model = str(record.get("recipe") or ""), str(record.get("base_model") or model)
    return portable_name(model), task, recipe


def _task(file: Path) -> str:
    """The name of the training examples that a ``run.yaml`` names: a hub id, or that of the file or its folder."""
    try:
        source: Any = read_yaml(file)
        source = source["data"]["train"]
    except (HeadEditError, OSError, KeyError, TypeError):
        return ""
    sources = source if isinstance(source, list) else [source]
    return ", ".join(dict.fromkeys(name for one in sources if (name := _file_name(str(one)))))


def _file_name(source: str) -> str:
    path = Path(source)
    if not path.suffix:
        return portable_name(source)
    return path.parent.name if path.stem in _PLAIN else path.stem


def _json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
