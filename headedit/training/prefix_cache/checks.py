"""Whether the layers below the first edited one can be stood in for: tried on one example, to the bit."""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from headedit.errors import HeadEditError
from headedit.hf.modes import evaluating
from headedit.training.prefix_cache.layers import LowerLayers

_SEEDS = 4
_SHARDING = {"fsdp": "ACCELERATE_USE_FSDP", "deepspeed": "ACCELERATE_USE_DEEPSPEED"}


def check_arguments(model: nn.Module, arguments: Mapping[str, Any]) -> None:
    """Refuses what can be told from the arguments of training, before anything is run.

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
            "compiled pass cannot begin in the middle. Leave one of the two off."
        )


def check_prefix(lower: LowerLayers, ids: Tensor) -> None:
    """Tries the layers on one example, in all that training may ask of them.

    Args:
        lower: the layers.
        ids: the example's token ids, [tokens], on the model's device.

    Raises:
        HeadEditError: weights are sharded, a parameter that is trained acts on what the layers give, that has noise,
            or the layers above take more than it from below.
    """
    model = lower.model
    if any(isinstance(parameter, DTensor) for parameter in model.parameters()):
        raise HeadEditError(_sharded("over several processes"))
    row = ids[None]
    inputs = {"input_ids": row, "attention_mask": torch.ones_like(row), "labels": row, "use_cache": False}

    def run() -> Any:
        return model(**inputs)

    try:
        _under(model, False, 0, run)
    except Exception as error:  # whatever a model raises that cannot take a batch of one
        raise HeadEditError(
            f"cache_prefix: {type(model).__name__} cannot run one example alone ({type(error).__name__}: {error}), and "
            "that is how it is kept. Leave it off."
        ) from None
    trained = _trained_below(lower, ids)
    if trained:
        listed = ", ".join(trained[:3]) + (", …" if len(trained) > 3 else "")
        raise HeadEditError(
            f"cache_prefix: {listed}, in front of layer {lower.count}, the first that is edited, can be trained, so "
            "its output changes from step to step. Freeze it with requires_grad_(False), or leave cache_prefix off."
        )
    kept = _under(model, False, 0, lambda: lower.run(ids))
    if not all(_same(kept, _under(model, True, seed, lambda: lower.run(ids))) for seed in range(_SEEDS)):
        raise HeadEditError(
            f"cache_prefix: the layers below layer {lower.count}, the first that is edited, do not give the same "
            "twice in training: they have dropout or other noise. Load the model with its dropout at 0, or leave "
            "cache_prefix off."
        )
    for training, mode in ((False, "evaluation"), (True, "training")):
        whole = _under(model, training, 0, run)
        lower.stand_in(kept[None].clone())
        try:
            replayed = _under(model, training, 0, run)
        except Exception as error:  # whatever a layer raises that misses something
            raise HeadEditError(_reads_more(lower, f"{type(error).__name__}: {error}")) from None
        finally:
            lower.step_aside()
        differing = [name for name in whole if not _same(whole[name], replayed.get(name))]
        if differing:
            raise HeadEditError(_reads_more(lower, f"{', '.join(differing)} differ in {mode}"))


@contextmanager
def unchanged_random(model: nn.Module) -> Iterator[None]:
    """A context after which the random numbers of the host and the model's devices go on as before it."""
    devices = {parameter.device for parameter in model.parameters()} - {torch.device("cpu"), torch.device("meta")}
    kind = next((device.type for device in devices), "cuda")
    with torch.random.fork_rng([device.index for device in devices], device_type=kind):
        yield


@torch.no_grad()
def _under(model: nn.Module, training: bool, seed: int, run: Callable[[], Any]) -> Any:
    with unchanged_random(model), evaluating(model):
        model.train(training)
        torch.manual_seed(seed)
        return run()


def _trained_below(lower: LowerLayers, ids: Tensor) -> list[str]:
    """The names of the trainable parameters that act on what the layers give."""
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


def _same(one: Any, other: Any) -> bool:
    """Whether tensors, or tuples and lists of tensors, are equal to the bit."""
    if isinstance(one, Tensor):
        return isinstance(other, Tensor) and torch.equal(one, other)
    if isinstance(one, tuple | list):
        return len(one) == len(other) and all(map(_same, one, other))
    return True


def _sharded(how: str) -> str:
    return (
        f"cache_prefix: the weights are sharded {how}, and a process cannot run the lower layers on its own. Use DDP "
        "or one process, or leave it off."
    )


def _reads_more(lower: LowerLayers, why: str) -> str:
    return (
        f"cache_prefix: layer {lower.count} and those above of {type(lower.model).__name__} take more from the layers "
        f"below than their hidden state, or draw random numbers after theirs ({why}). This architecture cannot have "
        "it: leave it off."
    )
