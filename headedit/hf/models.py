"""Whether an object is a transformers model, and whether it predicts tokens; what it is instead where it is not."""

import re
from os import PathLike
from typing import Any

from torch import nn

from headedit.errors import HeadEditError
from headedit.hf.compiled import uncompiled
from headedit.hf.config import text_config
from headedit.hf.engines import PLUGIN
from headedit.io.describe import describe, with_article

_WRAPPERS = {"DataParallel", "DistributedDataParallel", "FullyShardedDataParallel", "DeepSpeedEngine"}
_OTHER_TASKS = re.compile(
    r"For(\w*Classification|\w*QuestionAnswering(Simple)?|MultipleChoice|NextSentencePrediction|MaskedLM|PreTraining|"
    r"\w*Detection|\w*Segmentation|CTC|\w*Retrieval)$"
)


def expect_model(given: Any) -> nn.Module:
    """The transformers model that was given; of one that ``torch.compile`` made, the module inside, which it runs.

    Raises:
        HeadEditError: it is none; the message says what it is, and how to get a model from it.
    """
    if isinstance(given, nn.Module):
        given = uncompiled(given)
    if not isinstance(given, nn.Module):
        raise HeadEditError(f"Expected a transformers model, found {describe(given)}. {_way_to_a_model(given)}")
    wrapper = next((cls.__name__ for cls in type(given).__mro__ if cls.__name__ in _WRAPPERS), None)
    if wrapper is not None:
        raise HeadEditError(
            f"Found {with_article(wrapper)}, which is a wrapper around a model. Put the edits on first: "
            f"headedit.attach(model), then {wrapper}(model)."
        )
    if not isinstance(getattr(getattr(given, "config", None), "model_type", None), str):
        raise HeadEditError(
            f"Expected a transformers model with config.model_type, found {type(given).__name__}. Give the "
            "whole model, such as one of headedit.load_model or AutoModelForCausalLM.from_pretrained."
        )
    return given


def check_no_other_task(model: nn.Module) -> None:
    """Raises a HeadEditError where the head of a model is that of another task, such as a classifier's."""
    name = _other_task(model)
    if name is not None:
        classify = " To classify, train it to answer with the name of the class, as in (text, ' positive')."
        raise HeadEditError(
            f"{name} has the head of another task in place of a language model's, and attach freezes every weight, so "
            f"a new head would stay random. {_load_instead(model)}{classify if name.endswith('Classification') else ''}"
        )


def check_has_head(model: nn.Module, what: str) -> None:
    """Raises a HeadEditError where a model has no language model's head, and so gives no logits for tokens.

    A model that does not say what its head is passes.

    Args:
        model: a transformers model, perhaps inside PEFT's.
        what: what needs the logits, such as ``Training``.
    """
    inner = _without_peft(model)
    head = getattr(inner, "get_output_embeddings", None)
    headless = callable(head) and getattr(inner, "base_model", None) is inner and head() is None
    if headless or _other_task(model) is not None:
        raise HeadEditError(
            f"{what} needs logits for the next token, and {type(inner).__name__} has no language model's head. "
            f"{_load_instead(model)}"
        )


def check_causal_lm(model: nn.Module, what: str) -> None:
    """Raises a HeadEditError where a model does not predict the next token of what it reads.

    Args:
        model: a transformers model, perhaps inside PEFT's.
        what: what needs such a model, such as ``Training``.
    """
    check_has_head(model, what)
    inner = _without_peft(model)
    if getattr(getattr(inner, "config", None), "is_encoder_decoder", False):
        raise HeadEditError(
            f"{what} needs a causal LM, and {type(inner).__name__} has an encoder, which would read the response "
            f"before it is predicted. {_load_instead(model)}"
        )


def _other_task(model: nn.Module) -> str | None:
    """The name of the class that gives a model the head of another task; None where it has none."""
    names = (cls.__name__ for part in (model, _without_peft(model)) for cls in type(part).__mro__)
    return next((name for name in names if _OTHER_TASKS.search(name)), None)


def _without_peft(model: nn.Module) -> nn.Module:
    get: Any = getattr(model, "get_base_model", None) if hasattr(model, "peft_config") else None
    inner = get() if callable(get) else model
    return inner if isinstance(inner, nn.Module) else model


def _load_instead(model: nn.Module) -> str:
    name = getattr(text_config(model), "_name_or_path", "") or getattr(model.config, "_name_or_path", "")
    place = repr(str(name)) if name else "name"
    return (
        f"Load the causal LM in its place: headedit.load_model({place}), or "
        f"AutoModelForCausalLM.from_pretrained({place})."
    )


def _way_to_a_model(given: Any) -> str:
    """What to write in place of an object that is not a model."""
    if isinstance(given, str | PathLike):
        return f"Load it first: model = headedit.load_model({str(given)!r})."
    if isinstance(given, type):
        return "Load one: headedit.load_model('name'), or AutoModelForCausalLM.from_pretrained('name')."
    if type(given).__module__.partition(".")[0] == "vllm":
        return f"Edits are served in vLLM by the plugin: {PLUGIN}."
    if isinstance(getattr(given, "model", None), nn.Module):
        return "Give its model: the attribute .model."
    if hasattr(given, "convert_tokens_to_ids") or hasattr(given, "tokenizer"):
        return "Give the model that it belongs to."
    if hasattr(given, "peft_type"):
        return "The model comes first; an adapter of PEFT is put on it by peft.get_peft_model(model, config)."
    if hasattr(given, "model_type") and hasattr(given, "to_dict"):
        return (
            "A config holds no weights: headedit.load_model('name') loads a model, and "
            "AutoModelForCausalLM.from_config(config) makes one with random weights."
        )
    return "headedit.load_model('name') loads one, as AutoModelForCausalLM.from_pretrained('name') does."
