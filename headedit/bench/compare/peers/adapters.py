"""Every peer by name: how it is put on a model, and which learning rates a user would try."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import nn

from headedit.bench.compare.peers.interventions import add_biases, add_loreft, add_red
from headedit.errors import HeadEditError
from headedit.io.optional import import_optional
from headedit.specs.registry import model_type_of


@dataclass(frozen=True)
class Peer:
    """One way to adapt a model.

    Fields:
        adapt: puts it on a model with the seed that is set, and returns what is trained and evaluated. It takes the
            settings of the method that are not common to all.
        rates: learning rates that are tried.
        settings: the method's own settings, with their defaults.
    """

    adapt: Callable[..., nn.Module]
    rates: tuple[float, ...]
    settings: dict[str, Any]


def add_lora(model: nn.Module, *, r: int, lora_alpha: int, dora: bool = False) -> nn.Module:
    """Puts LoRA on the modules that peft adapts in a model of its type by default; nothing else is trainable.

    Args:
        model: a causal LM.
        r: rank.
        lora_alpha: α; the update is multiplied by α / r.
        dora: learn the lengths of the weights' columns apart from their directions (DoRA, arXiv 2402.09353).

    Raises:
        HeadEditError: peft is not installed, or the model has not the modules to adapt.
    """
    peft, kind = import_optional("peft", "LoRA"), model_type_of(model)
    known = peft.utils.TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
    fused = kind == "gpt2"
    targets = known.get(kind, ["c_attn"] if fused else ["q_proj", "v_proj"])
    shape = {"r": r, "lora_alpha": lora_alpha, "target_modules": targets, "fan_in_fan_out": fused}
    return _by_peft(model, "LoraConfig", **shape, use_dora=dora)


def _by_peft(model: nn.Module, config: str, **options: Any) -> nn.Module:
    """The model with an adapter of peft."""
    peft = import_optional("peft", "An adapter of peft")
    kind = model_type_of(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft and transformers about each other
        try:
            adapted: nn.Module = peft.get_peft_model(model, getattr(peft, config)(task_type="CAUSAL_LM", **options))
        except (ValueError, KeyError) as error:
            raise HeadEditError(f"peft cannot adapt a model of the type '{kind}': {error}") from None
    return adapted


PEERS: dict[str, Peer] = {
    "lora": Peer(add_lora, (1e-3, 3e-3, 1e-2), {"r": 8, "lora_alpha": 16}),
    "dora": Peer(partial(add_lora, dora=True), (1e-3, 3e-3, 1e-2), {"r": 8, "lora_alpha": 16}),
    "ia3": Peer(lambda model: _by_peft(model, "IA3Config"), (3e-3, 1e-2, 3e-2), {}),
    "ln": Peer(lambda model: _by_peft(model, "LNTuningConfig"), (1e-3, 3e-3, 1e-2), {}),
    "bitfit": Peer(add_biases, (1e-3, 3e-3, 1e-2), {}),
    "red": Peer(add_red, (1e-3, 3e-3, 1e-2), {}),
    "loreft": Peer(add_loreft, (3e-4, 1e-3, 3e-3), {"rank": 4}),
    "prompt tuning": Peer(
        lambda model, *, tokens: _by_peft(model, "PromptTuningConfig", num_virtual_tokens=tokens),
        (3e-3, 3e-2, 3e-1),
        {"tokens": 16},
    ),
}
"""By the name in a comparison's file."""
