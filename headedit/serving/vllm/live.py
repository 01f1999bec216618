"""Edits loaded and unloaded while an engine runs in this process: ``load_edit(llm, "name", folder)``."""

from os import PathLike
from typing import Any

from headedit.errors import HeadEditError
from headedit.hf.building import build_without_weights
from headedit.serving.saved_edit import SavedEdit, read_for
from headedit.serving.vllm.refusals import check_edit
from headedit.serving.vllm.registry import Registry
from headedit.serving.vllm.requests import registry_of
from headedit.serving.vllm.slots import slots_of
from headedit.serving.vllm.start import check_served


def load_edit(llm: Any, name: str, path: "str | PathLike[str]") -> None:
    """Loads saved edits into a running ``vllm.LLM``, in place of others of the same name.

    Args:
        llm: made with ``HEADEDIT_EDITS`` set; it may be empty.
        name: the one that requests choose the edits by.
        path: a folder of saved edits.

    Raises:
        HeadEditError: the engine serves no edits, or these do not fit the model.
    """
    registry = _registry(llm)
    edit = check_new(llm.llm_engine.vllm_config, registry, name, path)
    llm.llm_engine.add_lora(registry.request(edit))
    _forget(llm, registry, registry.put(edit))


def unload_edit(llm: Any, name: str) -> None:
    """Unloads an edit from a running ``vllm.LLM`` that has no request under way.

    Raises:
        HeadEditError: the engine serves no edits, or none of this name.
    """
    registry = _registry(llm)
    _forget(llm, registry, registry.remove(name))


def _forget(llm: Any, registry: Registry, edit: SavedEdit | None) -> None:
    """Has the workers forget an edit that is no longer offered."""
    if edit is not None and not registry.offers(edit.digest):
        llm.llm_engine.remove_lora(registry.request(edit).lora_int_id)


def served_edits(llm: Any) -> list[str]:
    """The names of the edits that a running ``vllm.LLM`` serves."""
    return _registry(llm).names()


def check_new(vllm_config: Any, registry: Registry, name: str, path: "str | PathLike[str]") -> SavedEdit:
    """Saved edits that a running engine can serve.

    Raises:
        HeadEditError: they cannot be read, do not fit the model, or act where this engine edits nothing.
    """
    settings = slots_of(vllm_config)
    assert settings is not None
    if registry.model is None:
        registry.model = build_without_weights(vllm_config.model_config.hf_config).eval()
    edit = read_for(registry.model, name, path)
    check_served(edit, settings.places)
    check_edit(vllm_config, edit)
    return edit


def _registry(llm: Any) -> Registry:
    registry = registry_of(llm.llm_engine.input_processor)
    if registry is None:
        raise HeadEditError("This engine serves no edits. Set HEADEDIT_EDITS before it is made; it may be empty.")
    return registry
