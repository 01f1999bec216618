"""Whether saved edits fit a model: how a base model is described, and messages that list the differences."""

from pathlib import Path
from typing import Any

from torch import nn

from headedit.edits.files.format import SITE_KEYS
from headedit.errors import HeadEditError
from headedit.hf.config import text_config
from headedit.specs import HeadSite
from headedit.specs.registry import model_type_of

_SHAPE_KEYS = ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "vocab_size")


def describe(model: nn.Module) -> dict[str, Any]:
    """The name, revision, type, class and shape of a base model, as far as its config has them."""
    config: Any = model.config
    text = text_config(model)
    described = {
        "name_or_path": getattr(config, "_name_or_path", ""),
        "revision": getattr(config, "_commit_hash", None),
        "model_type": model_type_of(model),
        "class": type(model).__name__,
    }
    for key in _SHAPE_KEYS:
        try:
            described[key] = getattr(text, key)
        except (AttributeError, RuntimeError):  # not every config has it, and some raise where layers differ
            continue
    return described


def site_row(site: HeadSite) -> dict[str, Any]:
    """One site as a row of the config file."""
    return {key: getattr(site, key) for key in SITE_KEYS}


def check_model(saved: dict[str, Any], model: nn.Module, folder: Path) -> None:
    """Raises a HeadEditError that lists what differs where the edits were made for a model of another shape."""
    _refuse(_differences(saved["base_model"], describe(model), ("model_type", *_SHAPE_KEYS)), saved, folder)


def check_sites(saved: dict[str, Any], sites: list[HeadSite], folder: Path) -> None:
    """Raises a HeadEditError that lists what differs where the sites of a model are not those of the edits."""
    live = [site_row(site) for site in sites]
    if live == saved["sites"]:
        return
    by_name = {row["name"]: row for row in live}
    rows = []
    for row in saved["sites"]:
        if row["name"] not in by_name:
            rows.append(f"{row['name']}: not in this model")
        else:
            rows += _differences(row, by_name[row["name"]], SITE_KEYS)
    _refuse(rows or ["the sites are in another order"], saved, folder)


def _differences(saved: dict[str, Any], live: dict[str, Any], keys: tuple[str, ...]) -> list[str]:
    pairs = [(key, saved.get(key), live.get(key)) for key in keys]
    return [f"{key}: edits {str(theirs)[:200]}, model {ours}" for key, theirs, ours in pairs if theirs != ours]


def _refuse(differences: list[str], saved: dict[str, Any], folder: Path) -> None:
    if differences:
        shown = "; ".join(differences[:8]) + (f"; and {len(differences) - 8} more" if len(differences) > 8 else "")
        base = str(saved["base_model"].get("name_or_path") or "an unnamed model")[:200]
        raise HeadEditError(f"{folder}: these edits were made for another model ({base}). They differ in {shown}.")
