"""Checks that replaying the layers below the first edited one changes no bit of a forward pass."""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from headedit.errors import HeadEditError
from headedit.hf.modes import evaluating
from headedit.hf.sharding import is_sharded
from headedit.training.prefix_cache.layers import LowerLayers

_SEEDS = 4
_SHARDING = {"fsdp": "ACCELERATE_USE_FSDP", "deepspeed": "ACCELERATE_USE_DEEPSPEED"}


def check_arguments(model: nn.Module, arguments: Mapping[str, Any]) -> None:
    """Refuses training arguments that the cache does not support, before anything is run.

    Raises:
        HeadEditError: the run is sharded or compiled.
    """
    for key, variable in _SHARDING.items():
        if arguments.get(key) or os.environ.get(variable, "false").lower() in ("true", "1"):
            raise HeadEditError(_sharded(f"by {key}"))
    compiled = [key for key in ("torch_compile", "torch_compile_backend", "torch_compile_mode") if arguments.get(key)]
    if compiled or any(getattr(module, "_compiled_call_impl", None) for module in model.modules()):
        raise HeadEditError(
            f"cache_prefix: the model is compiled ({compiled[0] if compiled else 'by its method compile'}), and a "
            "compiled pass cannot start in the middle. Leave one of the two off."
        )


def check_prefix(lower: LowerLayers, ids: Tensor) -> None:
    """Tests on one example that the cache is exact in training and in evaluation.

    Args:
        lower: the layers.
        ids: the example's token ids, [tokens], on the model's device.

    Raises:
        HeadEditError: weights are sharded, the layers' output depends on a trainable parameter or on random numbers,
            or the layers above read more than that output.
    """
    model = lower.model
    if any(is_sharded(parameter) for parameter in model.parameters()):
        raise HeadEditError(_sharded("over several processes"))
    row = rearrange(ids, "token -> 1 token")
    inputs = {"input_ids": row, "attention_mask": torch.ones_like(row), "labels": row, "use_cache": False}

    def run() -> Any:
        return model(**inputs)

    try:
        _run_in_mode(model, False, 0, run)
    except Exception as error:  # whatever a model raises for a batch of one
        raise HeadEditError(
            f"cache_prefix: {type(model).__name__} cannot run one example alone ({type(error).__name__}: {error}), "
            "which the cache needs. Leave cache_prefix off."
        ) from None
    trained = _trained_below(lower, ids)
    if trained:
        listed = ", ".join(trained[:3]) + (", …" if len(trained) > 3 else "")
        raise HeadEditError(
            f"cache_prefix: {listed}, before layer {lower.count}, the first edited one, can be trained, so the output "
            "there changes from step to step. Freeze it with requires_grad_(False), or leave cache_prefix off."
        )
    cached = _run_in_mode(model, False, 0, lambda: lower.run(ids))
    repeated = (_run_in_mode(model, True, seed, lambda: lower.run(ids)) for seed in range(_SEEDS))
    if not all(_bitwise_equal(cached, hidden) for hidden in repeated):
        raise HeadEditError(
            f"cache_prefix: the layers below layer {lower.count}, the first edited one, do not return the same twice "
            "in training: they have dropout or other noise. Load the model with its dropout at 0, or leave "
            "cache_prefix off."
        )
    for training, mode in ((False, "evaluation"), (True, "training")):
        full = _run_in_mode(model, training, 0, run)
        lower.replay(rearrange(cached, "token hidden -> 1 token hidden").clone())
        try:
            replayed = _run_in_mode(model, training, 0, run)
        except Exception as error:  # whatever a layer raises if something is missing
            raise HeadEditError(_not_hidden_alone(lower, f"{type(error).__name__}: {error}")) from None
        finally:
            lower.restore()
        differing = [name for name in full if not _bitwise_equal(full[name], replayed.get(name))]
        if differing:
            raise HeadEditError(_not_hidden_alone(lower, f"{', '.join(differing)} differ in {mode}"))


@contextmanager
def preserved_rng(model: nn.Module) -> Iterator[None]:
    """A context that leaves the random state of the host and of the model's devices unchanged."""
    devices = {parameter.device for parameter in model.parameters()} - {torch.device("cpu"), torch.device("meta")}
    kind = next((device.type for device in devices), "cuda")
    with torch.random.fork_rng([device.index for device in devices], device_type=kind):
        yield


@torch.no_grad()
def _run_in_mode(model: nn.Module, training: bool, seed: int, run: Callable[[], Any]) -> Any:
    """The result of a forward pass in training or eval mode, with the random state of a seed."""
    with preserved_rng(model), evaluating(model):
        model.train(training)
        torch.manual_seed(seed)
        return run()


def _trained_below(lower: LowerLayers, ids: Tensor) -> list[str]:
    """The names of the trainable parameters on which the output of the layers depends."""
    names, parameters = [], []
    for name, parameter in lower.model.named_parameters():
        if parameter.requires_grad:
            names.append(name)
            parameters.append(parameter)
    with torch.enable_grad(), evaluating(lower.model):
        hidden = lower.run(ids)
        if not hidden.requires_grad:
            return []
        gradients = torch.autograd.grad(hidden.sum(), parameters, allow_unused=True)
    return [name for name, gradient in zip(names, gradients, strict=True) if gradient is not None]


def _bitwise_equal(one: Any, other: Any) -> bool:
    """Whether tensors, or tuples and lists of tensors, are equal bit for bit."""
    if isinstance(one, Tensor):
        return isinstance(other, Tensor) and torch.equal(one, other)
    if isinstance(one, tuple | list):
        return len(one) == len(other) and all(map(_bitwise_equal, one, other))
    return True


def _sharded(how: str) -> str:
    return (
        f"cache_prefix: the weights are sharded {how}, so a process cannot run the lower layers alone. Use DDP or one "
        "process, or leave cache_prefix off."
    )


def _not_hidden_alone(lower: LowerLayers, why: str) -> str:
    return (
        f"cache_prefix: layer {lower.count} and those above of {type(lower.model).__name__} read more from the layers "
        f"below than their hidden state, or draw random numbers after them ({why}), so it is unavailable for this "
        "architecture: leave it off."
    )
