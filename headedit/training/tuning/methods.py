"""The adapters that ``headedit tune`` trains, by name: LoRA, DoRA, IA3, and the scales of layer norms, all by PEFT."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import nn

from headedit.errors import HeadEditError, suggest
from headedit.io import strict
from headedit.io.optional import import_optional
from headedit.specs.registry import model_type_of

METHODS = ("lora", "dora", "ia3", "ln")
_LOW_RANK = ("lora", "dora")
_RANK, _ALPHA = 8, 16
_NOT_HERE = {
    "bottleneck": (
        "PEFT has no bottleneck adapters, and the library 'adapters', which has them, does not work with transformers 5"
    ),
    "prefix-tuning": "learned prefixes belong to no layer, so no layers can be drawn for IST or RST",
}


@dataclass(frozen=True, kw_only=True)
class MethodConfig:
    """An adapter of PEFT and its shape.

    Fields:
        name: ``lora`` (Hu et al., arXiv 2106.09685), ``dora`` (Liu et al., arXiv 2402.09353), ``ia3`` (Liu et al.,
            arXiv 2205.05638) or ``ln``, which trains the layer norms.
        rank: of ``lora`` and ``dora``; None for 8.
        alpha: of ``lora`` and ``dora``, whose update is multiplied by alpha / rank; None for 16.
        dropout: share of the inputs of ``lora`` and ``dora`` that a training pass leaves out.
        targets: names of the modules that get an adapter, such as ``q_proj``; None for those that PEFT adapts by
            default in models of this type.

    Raises:
        HeadEditError: there is no such method, a value is out of range, or one is given that the method does not have.
    """

    name: str = "lora"
    rank: int | None = None
    alpha: float | int | None = None
    dropout: float = 0.0
    targets: list[str] | None = None

    def __post_init__(self) -> None:
        strict.check(self)
        if self.name in _NOT_HERE:
            raise HeadEditError(f"'{self.name}' is not here: {_NOT_HERE[self.name]}. {_known()}")
        if self.name not in METHODS:
            raise HeadEditError(f"there is no '{self.name}'.{suggest(self.name, METHODS, elsewhere=True)} {_known()}")
        given = {"rank": self.rank, "alpha": self.alpha, "dropout": self.dropout or None}
        for key, value in given.items():
            if value is not None and self.name not in _LOW_RANK:
                raise HeadEditError(f"{key}: is for lora and dora, and '{self.name}' has none; leave it out.")
        for key in ("rank", "alpha"):
            if given[key] is not None and not given[key] > 0:  # type: ignore[operator]
                raise HeadEditError(f"{key}: found {given[key]}, expected a number above 0.")
        if not 0 <= self.dropout < 1:
            raise HeadEditError(f"dropout: found {self.dropout}, expected a share from 0 to below 1.")
        if self.targets == []:
            raise HeadEditError("targets: the list is empty, expected names of modules such as q_proj.")
        if self.name in _LOW_RANK:
            object.__setattr__(self, "rank", _RANK if self.rank is None else self.rank)
            object.__setattr__(self, "alpha", _ALPHA if self.alpha is None else self.alpha)


def add_adapter(model: nn.Module, method: MethodConfig) -> Any:
    """PEFT's model around a causal LM; what the adapter adds is trainable, and nothing else.

    Raises:
        HeadEditError: PEFT is not installed, or finds none of the modules in the model.
    """
    peft = import_optional("peft", "headedit tune")
    with quiet():
        try:
            return peft.get_peft_model(model, _config(peft, model, method))
        except (ValueError, KeyError) as error:
            raise HeadEditError(
                f"method: PEFT cannot put '{method.name}' on a model of the type '{model_type_of(model)}': {error} "
                "Give the names of its modules as method.targets."
            ) from None


@contextmanager
def quiet() -> Iterator[None]:
    """A context without the warnings of PEFT and transformers about each other, and of layer norms as a novelty."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        warnings.filterwarnings("ignore", message="Unsupported layer type")
        yield


def _config(peft: Any, model: nn.Module, method: MethodConfig) -> Any:
    common = {"task_type": "CAUSAL_LM", "target_modules": method.targets}
    if method.name in _LOW_RANK:
        return peft.LoraConfig(
            r=method.rank,
            lora_alpha=method.alpha,
            lora_dropout=method.dropout,
            bias="none",
            use_dora=method.name == "dora",
            **common,
        )
    if method.name == "ln":
        return peft.LNTuningConfig(**common)
    if method.targets is None:
        return peft.IA3Config(**common)
    known = peft.utils.TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING.get(model_type_of(model), [])
    return peft.IA3Config(feedforward_modules=[name for name in method.targets if name in known], **common)


def _known() -> str:
    return f"Methods: {', '.join(METHODS)}."
