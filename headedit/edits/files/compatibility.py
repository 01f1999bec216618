"""Whether saved edits fit a model: how a base model is described, and messages that list the differences."""

from typing import Any
from warnings import warn

from torch import nn

from headedit.errors import HeadEditError
from headedit.hf.config import text_config
from headedit.hf.names import portable_name
from headedit.specs import HeadSite
from headedit.specs.registry import model_type_of

SITE_KEYS = ("layer", "layers", "kind", "name", "heads", "head_dim")
"""What is recorded of a site."""

_SHAPE_KEYS = ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
_VOCABULARY = "vocab_size"  # no edit depends on it, and a token is easily added


def describe(model: nn.Module) -> dict[str, Any]:
    """The name, revision, type, class and shape of a base model, as far as its config has them.

    The name of a model from a local folder is the name of that folder, without the path to it.
    """
    config: Any = model.config
    text = text_config(model)
    described = {
        "name_or_path": portable_name(getattr(config, "_name_or_path", "")),
        "revision": getattr(config, "_commit_hash", None),
        "model_type": model_type_of(model),
        "class": type(model).__name__,
    }
    for key in (*_SHAPE_KEYS, _VOCABULARY):
        try:
            described[key] = getattr(text, key)
        except (AttributeError, RuntimeError):  # not every config has it, and some raise where layers differ
            continue
    return described


def site_row(site: HeadSite) -> dict[str, Any]:
    """One site as a row of the config file."""
    return {key: getattr(site, key) for key in SITE_KEYS}


def check_model(saved: dict[str, Any], model: nn.Module, where: object) -> None:
    """Compares a model with the one that edits were made for; a vocabulary of another size is only warned of.

    Raises:
        HeadEditError: the model has another type or shape; the message lists what differs.
    """
    theirs, ours = saved["base_model"], describe(model)
    refuse(_differences(theirs, ours, ("model_type", *_SHAPE_KEYS)), saved, where)
    for difference in _differences(theirs, ours, (_VOCABULARY,)):
        warn(
            f"{where}: these edits were made for a model with another vocabulary ({difference}). No edit depends on "
            "it, so they are loaded; check that the model is the right one.",
            stacklevel=2,
        )


def check_sites(saved: dict[str, Any], sites: list[HeadSite], where: object) -> None:
    """Raises a HeadEditError that lists what differs where the sites of a model are not those of the edits."""
    refuse(site_differences(saved["sites"], sites), saved, where)


def site_differences(rows: list[dict[str, Any]], sites: list[HeadSite]) -> list[str]:
    """How some sites of a model differ from the recorded ones, in words; empty where they are the same."""
    live = [site_row(site) for site in sites]
    if live == rows:
        return []
    by_name = {row["name"]: row for row in live}
    found = []
    for row in rows:
        if row["name"] not in by_name:
            found.append(f"{row['name']}: not in this model")
        else:
            found += _differences(row, by_name[row["name"]], SITE_KEYS)
    return found or ["the sites are in another order"]


def refuse(differences: list[str], saved: dict[str, Any], where: object) -> None:
    """Raises a HeadEditError that lists differences between a model and that of the edits, if there are any."""
    if differences:
        shown = "; ".join(differences[:8]) + (f"; and {len(differences) - 8} more" if len(differences) > 8 else "")
        base = str(saved["base_model"].get("name_or_path") or "an unnamed model")[:200]
        raise HeadEditError(f"{where}: these edits were made for another model ({base}). They differ in {shown}.")


def _differences(saved: dict[str, Any], live: dict[str, Any], keys: tuple[str, ...]) -> list[str]:
    pairs = [(key, saved.get(key), live.get(key)) for key in keys]
    return [f"{key}: edits {str(theirs)[:200]}, model {ours}" for key, theirs, ours in pairs if theirs != ours]
