"""What the plugin changes in vLLM: each name is looked for at start, with the parameters that are relied on."""

import inspect
from collections.abc import Callable
from importlib import import_module
from typing import Any, NamedTuple

from headedit.errors import HeadEditError

TRIED = ("0.32.0",)
"""The versions of vLLM that ``make test-serving`` was run with."""


class Name(NamedTuple):
    """A function of vLLM that is replaced by one around it.

    Fields:
        module: where the class is.
        owner: the class.
        function: its function.
        parameters: the names of parameters that are relied on.
    """

    module: str
    owner: str
    function: str
    parameters: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.module}.{self.owner}.{self.function}"


_MODELS = ("vllm.entrypoints.openai.models.serving", "OpenAIServingModels")
_RUNNER = ("vllm.v1.worker.lora_model_runner_mixin", "LoRAModelRunnerMixin")

CONFIG = Name("vllm.engine.arg_utils", "EngineArgs", "create_engine_config")
INPUTS = Name("vllm.v1.engine.input_processor", "InputProcessor", "process_inputs", ("params", "lora_request"))
LOADER = Name("vllm.model_executor.model_loader.base_loader", "BaseModelLoader", "load_model", ("vllm_config",))
MODEL = Name(*_RUNNER, "load_lora_model", ("model", "vllm_config", "device"))
BATCH = Name(*_RUNNER, "set_active_loras", ("input_batch", "num_scheduled_tokens"))
LIST = Name(*_MODELS, "init_static_loras")
LOAD = Name(*_MODELS, "load_lora_adapter", ("request",))
UNLOAD = Name(*_MODELS, "unload_lora_adapter", ("request",))
BEAMS = (
    Name("vllm.entrypoints.openai.completion.protocol", "CompletionRequest", "to_beam_search_params"),
    Name("vllm.entrypoints.openai.chat_completion.protocol", "ChatCompletionRequest", "to_beam_search_params"),
)
RELIED_ON = (
    Name("vllm.config.lora", "LoRAConfig", "compute_hash"),
    Name("vllm.config.lora", "LoRAConfig", "verify_with_model_config"),
    Name("vllm.v1.worker.gpu_input_batch", "InputBatch", "make_lora_inputs"),
    Name(*_RUNNER, "add_lora"),
    Name(*_RUNNER, "remove_lora"),
    Name(*_RUNNER, "_set_active_loras", ("token_lora_mapping", "lora_requests")),
)
"""Functions that are not changed, and by which the rest comes to be called as it is meant to."""


def find(name: Name) -> Callable[..., Any]:
    """The function of a name.

    Raises:
        HeadEditError: this vLLM does not have it, or it has other parameters.
    """
    try:
        found: Callable[..., Any] = getattr(getattr(import_module(name.module), name.owner), name.function)
    except (ImportError, AttributeError):
        raise _missing(str(name)) from None
    known = inspect.signature(found).parameters
    lacking = next((parameter for parameter in name.parameters if parameter not in known), None)
    if lacking is not None:
        raise _missing(f"parameter {lacking} of {name}")
    return found


def change(name: Name, around: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
    """Puts a function around vLLM's."""
    function = around(find(name))
    setattr(getattr(import_module(name.module), name.owner), name.function, function)


def _missing(what: str) -> HeadEditError:
    from vllm import __version__

    return HeadEditError(
        f"headedit cannot serve edits in vLLM {__version__}: it has no {what}. It was tried with vLLM "
        f"{', '.join(TRIED)}: pip install vllm=={TRIED[-1]}; or merge the edits with 'headedit merge'."
    )
