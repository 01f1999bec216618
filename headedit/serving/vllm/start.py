"""The start of an engine that serves edits: what is refused by name, and the settings that its processes get."""

import functools
import os
from collections.abc import Callable
from typing import Any

from headedit.errors import HeadEditError
from headedit.hf.building import build_without_weights
from headedit.serving.command import SLOTS_VARIABLE
from headedit.serving.folders import listed_folders, named_edits
from headedit.serving.saved_edit import SavedEdit, read_for
from headedit.serving.vllm.places import find_places
from headedit.serving.vllm.refusals import check_config
from headedit.serving.vllm.slots import SLOTS, edit_slots


def with_edits(create_engine_config: Callable[..., Any]) -> Callable[..., Any]:
    """vLLM's ``EngineArgs.create_engine_config``, with the settings of edits where the environment lists some."""

    @functools.wraps(create_engine_config)
    def create(self: Any, *values: Any, **named: Any) -> Any:
        config = create_engine_config(self, *values, **named)
        entries = listed_folders()
        if entries is not None:
            serve_edits(config, entries)
        return config

    return create


def serve_edits(config: Any, entries: list[str]) -> None:
    """Puts the settings of edits into a config of vLLM.

    Args:
        config: vLLM's, of which the rest is settled.
        entries: folders of saved edits, as in the environment variable.

    Raises:
        HeadEditError: the model or a setting is one with which edits cannot be served, or an edit does not fit.
    """
    slots = _slots()
    model = build_without_weights(config.model_config.hf_config).eval()
    edits = [read_for(model, name, path) for name, path in named_edits(entries).items()]
    check_config(config, edits)
    places = find_places(model, config.model_config.architecture, _kinds(edits))
    config.lora_config = edit_slots(slots, places, edits, config.model_config)
    config.compilation_config.cudagraph_specialize_lora = False  # one set of graphs, with edits or without


def check_served(edit: SavedEdit, places: Any) -> None:
    """Raises a HeadEditError where an edit has sites that an engine does not edit."""
    missing = sorted(set(edit.kinds) - {place.kind for place in places})
    if missing:
        raise HeadEditError(
            f"{edit.path}: has {missing[0]} sites, and this server was started without. Start it with an edit that has "
            "such sites."
        )


def _kinds(edits: list[SavedEdit]) -> list[str]:
    found = {kind for edit in edits for kind in edit.kinds}
    return sorted(found | {"attention"})


def _slots() -> int:
    text = os.environ.get(SLOTS_VARIABLE, str(SLOTS))
    if not text.isdecimal() or not 0 < int(text) < 2**16:
        raise HeadEditError(f"{SLOTS_VARIABLE}: found '{text}', expected how many edits a batch can have, such as 32.")
    return int(text)
