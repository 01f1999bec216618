"""Edits over HTTP, where vLLM has LoRA adapters: listed as models, loaded and unloaded while the server runs."""

import asyncio
import functools
from collections.abc import Callable
from http import HTTPStatus
from pathlib import Path
from typing import Any

from headedit.errors import HeadEditError
from headedit.serving.folders import listed_folders, roots
from headedit.serving.saved_edit import SavedEdit
from headedit.serving.vllm.chosen import unpack
from headedit.serving.vllm.live import check_new
from headedit.serving.vllm.registry import Registry
from headedit.serving.vllm.requests import registry_of

_PAUSE = 0.5  # seconds between looks at the requests under way
_tasks: set[Any] = set()  # so that they are not collected while they wait


def _registry(models: Any) -> Registry | None:
    return registry_of(models.engine_client.input_processor)


def with_static_edits(init_static_loras: Callable[..., Any]) -> Callable[..., Any]:
    """vLLM's ``OpenAIServingModels.init_static_loras``, which lists the edits among the models."""

    @functools.wraps(init_static_loras)
    async def init(self: Any) -> None:
        await init_static_loras(self)
        registry = _registry(self)
        for name in [] if registry is None else registry.names():
            if self.is_base_model(name):
                raise HeadEditError(f"An edit and the model are both called '{name}'. Rename the folder of the edit.")
            _list(self, registry, name)

    return init


def with_loading(load_lora_adapter: Callable[..., Any]) -> Callable[..., Any]:
    """vLLM's ``OpenAIServingModels.load_lora_adapter``, which loads an edit."""

    @functools.wraps(load_lora_adapter)
    async def load(self: Any, request: Any, base_model_name: str | None = None) -> Any:
        registry = _registry(self)
        if registry is None:
            return await load_lora_adapter(self, request, base_model_name)
        async with self.lora_resolver_lock[request.lora_name]:
            try:
                edit = await _load(self, registry, request)
            except HeadEditError as error:
                return _error(str(error), "BadRequestError", HTTPStatus.BAD_REQUEST)
            _forget(self.engine_client, registry, registry.put(edit))
            _list(self, registry, edit.name)
        return f"Success: the edit '{edit.name}' was loaded."

    return load


def with_unloading(unload_lora_adapter: Callable[..., Any]) -> Callable[..., Any]:
    """vLLM's ``OpenAIServingModels.unload_lora_adapter``, which unloads an edit; requests under way go on with it."""

    @functools.wraps(unload_lora_adapter)
    async def unload(self: Any, request: Any) -> Any:
        registry = _registry(self)
        if registry is None:
            return await unload_lora_adapter(self, request)
        async with self.lora_resolver_lock[request.lora_name]:
            try:
                edit = registry.remove(request.lora_name)
            except HeadEditError as error:
                return _error(str(error), "NotFoundError", HTTPStatus.NOT_FOUND)
            del self.lora_requests[edit.name]
        _forget(self.engine_client, registry, edit)
        return f"Success: the edit '{edit.name}' was unloaded."

    return unload


async def _load(models: Any, registry: Registry, request: Any) -> SavedEdit:
    """An edit that a request asks to load, in the memory of the workers.

    Raises:
        HeadEditError: it has no name, or one that is taken; or the edit cannot be served.
    """
    name = request.lora_name
    if not name or models.is_base_model(name):
        raise HeadEditError(f"lora_name: found '{name:.200}', expected a name that is not the model's.")
    if name in registry.names() and not request.load_inplace:
        raise HeadEditError(f"An edit '{name}' is loaded. Give load_inplace=true to replace it, or unload it first.")
    path = _below_roots(request.lora_path)
    edit = await asyncio.to_thread(check_new, models.engine_client.vllm_config, registry, name, path)
    try:
        await models.engine_client.add_lora(registry.request(edit))
    except Exception as error:  # what a worker raised comes as an error of the engine's
        raise HeadEditError(f"{path}: the engine did not load these edits ({error}).") from None
    return edit


def _forget(engine: Any, registry: Registry, edit: SavedEdit | None) -> None:
    """Has the workers forget an edit that is no longer offered, once no request under way has it."""
    if edit is not None and not registry.offers(edit.digest):
        task = asyncio.create_task(_forget_later(engine, registry, edit))
        _tasks.add(task)
        task.add_done_callback(_tasks.discard)


async def _forget_later(engine: Any, registry: Registry, edit: SavedEdit) -> None:
    while any(_has(state.lora_request, edit) for state in list(engine.output_processor.request_states.values())):
        await asyncio.sleep(_PAUSE)
    if not registry.offers(edit.digest):
        await engine.remove_lora(registry.request(edit).lora_int_id)


def _has(request: Any, edit: SavedEdit) -> bool:
    return request is not None and unpack(request.lora_name).digest == edit.digest


def _list(models: Any, registry: Registry | None, name: str) -> None:
    from vllm.lora.request import LoRARequest

    assert registry is not None
    edit = registry.get(name)
    models.lora_requests[name] = LoRARequest(name, registry.request(edit).lora_int_id, edit.path)


def _below_roots(path: str) -> Path:
    """A folder that may be loaded: one of those that the server was started with, or inside one.

    Raises:
        HeadEditError: it is elsewhere.
    """
    folder = Path(path).resolve()
    allowed = roots(listed_folders() or [])
    if not any(folder == root or root in folder.parents for root in allowed):
        raise HeadEditError(
            f"{path}: is not below a folder that this server was started with, so it is not loaded. Those are: "
            f"{', '.join(map(str, allowed))}."
        )
    return folder


def _error(message: str, kind: str, status: HTTPStatus) -> Any:
    from vllm.entrypoints.serve import create_error_response

    return create_error_response(message=message, err_type=kind, status_code=status)
