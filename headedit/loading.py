"""Models and tokenizers from a folder or the hub, with messages that say what is missing."""

from typing import Any, Literal

import torch
from torch import nn

from headedit.errors import HeadEditError

Dtype = Literal["auto", "float32", "bfloat16", "float16"]


def load_model(name: str, *, dtype: Dtype = "auto", device: str | None = None) -> nn.Module:
    """A causal LM in eval mode.

    Args:
        name: a folder that ``save_pretrained`` wrote, or the id of a model on the hub.
        dtype: ``auto`` for the dtype that the weights were saved in.
        device: such as ``cpu`` or ``cuda:0``; by default the first GPU, or the CPU where there is none.

    Raises:
        HeadEditError: there is no such model, it is not a causal LM, or the device is not there.
    """
    from transformers import AutoModelForCausalLM

    chosen = device or ("cuda" if torch.cuda.is_available() else "cpu")
    model = _from_pretrained(AutoModelForCausalLM, name, "model", dtype=dtype)
    try:
        model.to(chosen)
    except (RuntimeError, AssertionError) as error:
        raise HeadEditError(f"The model cannot be moved to the device '{chosen}' ({_first_line(error)}).") from None
    model.eval()
    assert isinstance(model, nn.Module)
    return model


def load_tokenizer(name: str) -> Any:
    """The tokenizer in a folder, or of a model on the hub.

    Raises:
        HeadEditError: there is none.
    """
    from transformers import AutoTokenizer

    return _from_pretrained(AutoTokenizer, name, "tokenizer")


def _from_pretrained(auto: Any, name: str, what: str, **options: Any) -> Any:
    try:
        return auto.from_pretrained(name, **options)
    except Exception as error:  # transformers, the hub client and safetensors each raise their own
        raise HeadEditError(
            f"No {what} could be loaded from '{name}'. Give a folder that save_pretrained wrote, or the id of a "
            f"causal LM on the Hugging Face hub. The loader said: {type(error).__name__}: {_first_line(error)}"
        ) from None


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
