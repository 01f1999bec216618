"""How a request comes to its edit: at the one place where vLLM makes the engine's request from what a user gave."""

import functools
import inspect
from collections.abc import Callable
from typing import Any

from headedit.serving.vllm.chosen import as_request
from headedit.serving.vllm.errors import RequestRefused
from headedit.serving.vllm.registry import NAME, Registry
from headedit.serving.vllm.slots import slots_of

_FIELD = "headedit"


def registry_of(processor: Any) -> Registry | None:
    """The edits that the front end of an input processor offers; None where the engine serves no edits."""
    settings = slots_of(processor.vllm_config)
    if settings is None:
        return None
    found = processor.__dict__.get(_FIELD)
    if found is None:
        found = processor.__dict__.setdefault(_FIELD, Registry(settings.edits))
    assert isinstance(found, Registry)
    return found


def with_edits(process_inputs: Callable[..., Any]) -> Callable[..., Any]:
    """vLLM's ``InputProcessor.process_inputs``, with the edit that the request chooses in its result."""
    signature = inspect.signature(process_inputs)

    @functools.wraps(process_inputs)
    def process(self: Any, *values: Any, **named: Any) -> Any:
        given = signature.bind(self, *values, **named)
        extra = getattr(given.arguments.get("params"), "extra_args", None)
        registry = registry_of(self)
        if registry is None:
            _check_unasked(extra)
            return process_inputs(self, *values, **named)
        lora = given.arguments.pop("lora_request", None)
        choice = registry.choice(extra, None if lora is None else lora.lora_name)
        request = process_inputs(*given.args, **given.kwargs)
        if choice is not None:
            edit, chosen = choice
            if chosen.positions != "all" and given.arguments.get("resumable"):
                raise RequestRefused(
                    f"The edit '{edit.name}' acts on some tokens alone (positions={chosen.positions!r}), and this "
                    "request's prompt may go on. Send the prompt as a whole."
                )
            prompt = len(request.prompt_token_ids or request.prompt_embeds)
            request.lora_request = as_request(chosen, edit.path, registry.ids, prompt)
        return request

    return process


def without_beams(to_beam_search_params: Callable[..., Any]) -> Callable[..., Any]:
    """vLLM's conversion of an HTTP request for a beam search, which drops a request's extra arguments."""

    @functools.wraps(to_beam_search_params)
    def convert(self: Any, *values: Any, **named: Any) -> Any:
        if any(str(key).startswith(NAME) for key in self.vllm_xargs or {}):
            raise RequestRefused(
                f"A beam search does not take {NAME} in vllm_xargs. Give the edit's name as that of the model."
            )
        return to_beam_search_params(self, *values, **named)

    return convert


def _check_unasked(extra: Any) -> None:
    """Raises where a request names an edit, and the engine serves none."""
    if any(str(key).startswith(NAME) for key in extra or {}):
        raise RequestRefused(
            "This request names an edit, and this engine serves none. Start it with HEADEDIT_EDITS set to folders of "
            "saved edits."
        )
