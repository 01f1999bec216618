"""Every peer by name: how it is put on a model, and which learning rates a user would try."""

from collections.abc import Callable
from dataclasses import dataclass
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
        title: what tables call it.
        adapt: puts it on a model with the seed that is set, and returns what is trained and evaluated. It takes the
            settings of the method that are not common to all.
        rates: learning rates that are tried.
        settings: the method's own settings, with their defaults.
    """

    title: str
    adapt: Callable[..., nn.Module]
    rates: tuple[float, ...]
    settings: dict[str, Any]


def lora_targets(kind: str) -> tuple[list[str] | str, bool]:
    """The modules that peft adapts in a model of a type by default, and whether their weights are transposed."""
    peft = import_optional("peft", "LoRA")
    known = peft.utils.TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
    fused = kind == "gpt2"
    return known.get(kind, ["c_attn"] if fused else ["q_proj", "v_proj"]), fused


def _lora(model: nn.Module, *, r: int, lora_alpha: int, dora: bool = False) -> nn.Module:
    targets, fused = lora_targets(model_type_of(model))
    return _by_peft(
        model,
        "LoraConfig",
        r=r,
        lora_alpha=lora_alpha,
        target_modules=targets,
        fan_in_fan_out=fused,
        use_dora=dora,
    )


def _dora(model: nn.Module, *, r: int, lora_alpha: int) -> nn.Module:
    return _lora(model, r=r, lora_alpha=lora_alpha, dora=True)


def _by_peft(model: nn.Module, config: str, **options: Any) -> nn.Module:
    """The model with an adapter of peft."""
    peft = import_optional("peft", "An adapter of peft")
    kind = model_type_of(model)
    try:
        adapted: nn.Module = peft.get_peft_model(model, getattr(peft, config)(task_type="CAUSAL_LM", **options))
    except (ValueError, KeyError) as error:
        raise HeadEditError(f"peft's {config} cannot adapt a model of the type '{kind}': {error}") from None
    return adapted


PEERS: dict[str, Peer] = {
    "lora": Peer("LoRA r 8", _lora, (1e-3, 3e-3, 1e-2), {"r": 8, "lora_alpha": 16}),
    "dora": Peer("DoRA r 8", _dora, (1e-3, 3e-3, 1e-2), {"r": 8, "lora_alpha": 16}),
    "ia3": Peer("(IA)³", lambda model: _by_peft(model, "IA3Config"), (3e-3, 1e-2, 3e-2), {}),
    "ln": Peer("LN tuning", lambda model: _by_peft(model, "LNTuningConfig"), (1e-3, 3e-3, 1e-2), {}),
    "bitfit": Peer("BitFit", add_biases, (1e-3, 3e-3, 1e-2), {}),
    "red": Peer("RED", add_red, (1e-3, 3e-3, 1e-2), {}),
    "loreft": Peer("LoReFT r 4", add_loreft, (3e-4, 1e-3, 3e-3), {"rank": 4}),
    "prompt tuning": Peer(
        "prompt tuning",
        lambda model, *, tokens: _by_peft(model, "PromptTuningConfig", num_virtual_tokens=tokens),
        (3e-3, 3e-2, 3e-1),
        {"tokens": 16},
    ),
}
"""By the name in a comparison's file."""
