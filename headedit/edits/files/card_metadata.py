"""The front matter of a model card, which the hub reads: license, base model, data sets, tags and results."""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from headedit.data.sources import dataset_id
from headedit.errors import HeadEditError, suggest
from headedit.hf.names import hub_id
from headedit.io.yaml import parse_yaml, read_yaml

_LICENSE = ("license", "license_name", "license_link")
_TEXTS = (*_LICENSE, "base_model", "pipeline_tag")
_LISTS = ("datasets", "language", "tags")
FIELDS = (*_TEXTS, *_LISTS)
"""What a user may say about edits for their card; the values are those of the hub's metadata."""

_CARD = "README.md"
_RUN_YAML = "run.yaml"
_LARGEST = 2**20  # of a base model's card, in bytes
_TASK = "text-generation"


def check_fields(fields: object) -> None:
    """Raises a HeadEditError where a card has no field of this name, or its value is of another kind."""
    if not isinstance(fields, Mapping):
        raise HeadEditError(f"card: found {fields!r}, expected True, False, or fields such as {{'license': 'mit'}}.")
    for name, value in fields.items():
        if name not in FIELDS:
            raise HeadEditError(f"card: no field is called {name!r}.{suggest(name, FIELDS)}")
        texts = value if name in _LISTS and isinstance(value, list | tuple) else [value]
        if not texts or not all(isinstance(text, str) and text.strip() for text in texts):
            raise HeadEditError(
                f"card: {name}: found {value!r}, expected a text{' or a list of texts' * (name in _LISTS)}."
            )


def base_name(model: nn.Module, fields: Mapping[str, Any]) -> str | None:
    """The hub id of the base model: the one that the fields name, or that it was loaded by; None where it has none."""
    return fields.get("base_model") or hub_id(getattr(model.config, "_name_or_path", ""))


def front_matter(
    model: nn.Module,
    folder: Path,
    *,
    fields: Mapping[str, Any],
    metrics: Mapping[str, float],
    run: Mapping[str, Any],
    repo_id: str | None,
) -> dict[str, Any]:
    """The front matter, as plain data; what is not known is left out.

    Args:
        model: the base model.
        folder: where the edits are; data sets with an id on the hub are read from a ``run.yaml`` in it.
        fields: what the user says; it wins over what is found.
        metrics: names and values that were measured, on the data set of the edits where they have one.
        run: the record of the run, as in ``run.json``; empty where there is none.
        repo_id: the id of the repository that the card is for.
    """
    name = base_name(model, fields)
    model_type = str(getattr(model.config, "model_type", ""))
    task = fields.get("pipeline_tag") or pipeline_tag(model)
    licensed = {key: fields[key] for key in _LICENSE if key in fields} or license_of_base(model)
    found = datasets_of_run(folder)
    datasets = _texts(fields.get("datasets")) or found.get("train", [])
    tags = ["headedit", "attention-heads", "activation-editing", *([model_type] if model_type else [])]
    results = model_index(
        repo_id or f"Head edits for {name or model_type}", task, {**found, "metrics": datasets}, metrics, run
    )
    front = {
        "library_name": "headedit",
        "pipeline_tag": task,
        **licensed,
        **({} if name is None else {"base_model": name, "base_model_relation": "adapter"}),
        "datasets": datasets,
        "language": _texts(fields.get("language")),
        "tags": list(dict.fromkeys([*tags, *_texts(fields.get("tags"))])),
        "model-index": results,
    }
    return {key: value for key, value in front.items() if value}


def pipeline_tag(model: nn.Module) -> str | None:
    """The hub's name for what a model is for, by the inputs of its config; None where it cannot generate."""
    generates = getattr(model, "can_generate", None)
    if not callable(generates) or not generates():
        return None
    sees, hears = (getattr(model.config, f"{sense}_config", None) is not None for sense in ("vision", "audio"))
    if sees and hears:
        return "any-to-any"
    return "image-text-to-text" if sees else "audio-text-to-text" if hears else _TASK


def license_of_base(model: nn.Module) -> dict[str, str]:
    """The license that the base model's own card names, in its folder or the hub's cache; empty where none does.

    Nothing is downloaded.
    """
    from huggingface_hub import try_to_load_from_cache

    name = str(getattr(model.config, "_name_or_path", "") or "")
    try:
        file: Any = Path(name) / _CARD
        if name and not file.is_file():
            file = try_to_load_from_cache(hub_id(name) or "", _CARD)
        if not name or not isinstance(file, str | Path) or Path(file).stat().st_size > _LARGEST:
            return {}
        front = re.match(r"---\s*\n(.*?)\n---\s*(\n|$)", Path(file).read_text(encoding="utf-8"), flags=re.DOTALL)
        found = parse_yaml(front[1], str(file)) if front else None
    except (OSError, ValueError, HeadEditError):  # those of names that no repository has are ValueErrors
        return {}
    texts = found if isinstance(found, dict) and isinstance(found.get("license"), str) else {}
    return {key: texts[key] for key in _LICENSE if isinstance(texts.get(key), str) and _stands_alone(key, texts[key])}


def _stands_alone(key: str, value: str) -> bool:
    """Whether a value means the same in another repository, which the name of a file does not."""
    return key != "license_link" or value.startswith(("https://", "http://"))


def datasets_of_run(folder: Path) -> dict[str, list[str]]:
    """The ids on the hub of the data of the run in a folder, for ``train``, ``valid`` and ``test``; none for files.

    Empty without a run that was started from a config.
    """
    try:
        content: Any = read_yaml(folder / _RUN_YAML)
        data = dict(content["data"])
    except (HeadEditError, OSError, KeyError, TypeError, ValueError):
        return {}
    found = {}
    for part in ("train", "valid", "test"):
        sources = data.get(part)
        if not isinstance(sources, str | list):
            sources = data.get("train")  # held out of it
        names = [source for source in _texts(sources) if isinstance(source, str)]
        ids = [match and match["name"] for match in map(dataset_id, names)]
        found[part] = list(dict.fromkeys(name for name in ids if name))
    return found


def model_index(
    name: str,
    task: str | None,
    datasets: Mapping[str, list[str]],
    metrics: Mapping[str, float],
    run: Mapping[str, Any],
) -> list[dict[str, Any]]:
    """The results in the hub's form: metrics, and losses of the edited model on validation and test examples.

    Args:
        name: what the results are of.
        task: a pipeline tag.
        datasets: ids for ``valid``, ``test`` and ``metrics``.
        metrics: names and values.
        run: the record of a run; empty for none.
    """
    held_out = run.get("held_out")
    loss = held_out.get("edited") if isinstance(held_out, dict) else run.get("best_eval_loss")
    rows = {
        "metrics": [_metric(_identifier(key), key, value) for key, value in metrics.items()],
        "valid": [_metric("loss", "validation loss, nats per token", loss)],
        "test": [_metric("loss", "test loss, nats per token", run.get("test_loss"))],
    }
    results = [
        {"task": {"type": task or _TASK}, "dataset": _dataset(datasets.get(part, [])), "metrics": found}
        for part, row in rows.items()
        if (found := [metric for metric in row if metric is not None])
    ]
    return [{"name": name, "results": results}] if results else []


def _dataset(ids: list[str]) -> dict[str, str]:
    """The data set of a result; the form asks for a name and an id, and data of one's own has no id."""
    return {"name": ids[0], "type": ids[0]} if len(ids) == 1 else {"name": "own data", "type": "custom"}


def _identifier(name: str) -> str:
    """The name of a metric as the hub writes them, such as ``exact_match``."""
    return re.sub(r"\W+", "_", name.lower()).strip("_") or "metric"


def _metric(kind: str, name: str, value: object) -> dict[str, Any] | None:
    """A metric with its value; None for what is no finite number, which the hub refuses."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return {"type": kind, "name": " ".join(name.split()), "value": value}


def _texts(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else list(value) if isinstance(value, list | tuple) else []
