"""The side of the workers: the model with the vectors of edits, and the slots of a batch."""

import functools
from collections.abc import Callable
from typing import Any

from headedit.serving.vllm.manager import EditManager, worker_manager
from headedit.serving.vllm.slots import slots_of


def without_lora(load_model: Callable[..., Any]) -> Callable[..., Any]:
    """vLLM's ``BaseModelLoader.load_model``, which does not see the settings of edits.

    Layers choose other kernels where a LoRA may come, such as experts and state-space mixers.
    """

    @functools.wraps(load_model)
    def load(self: Any, vllm_config: Any, *values: Any, **named: Any) -> Any:
        settings = slots_of(vllm_config)
        if settings is None:
            return load_model(self, vllm_config, *values, **named)
        vllm_config.lora_config = None
        try:
            return load_model(self, vllm_config, *values, **named)
        finally:
            vllm_config.lora_config = settings

    return load


def with_edits(load_lora_model: Callable[..., Any]) -> Callable[..., Any]:
    """vLLM's ``LoRAModelRunnerMixin.load_lora_model``, which gives the model the vectors of edits."""

    @functools.wraps(load_lora_model)
    def load(self: Any, model: Any, vllm_config: Any, device: Any) -> Any:
        if slots_of(vllm_config) is None:
            return load_lora_model(self, model, vllm_config, device)
        self.lora_manager = worker_manager(model, vllm_config, device)
        return model

    return load


def with_slots(set_active_loras: Callable[..., Any]) -> Callable[..., Any]:
    """vLLM's ``LoRAModelRunnerMixin.set_active_loras``, which sets the slots of a batch's tokens."""

    @functools.wraps(set_active_loras)
    def set_active(self: Any, input_batch: Any, num_scheduled_tokens: Any, *values: Any, **named: Any) -> Any:
        manager = getattr(self, "lora_manager", None)
        if isinstance(manager, EditManager):
            return manager.set_batch(input_batch, num_scheduled_tokens)
        return set_active_loras(self, input_batch, num_scheduled_tokens, *values, **named)

    return set_active
