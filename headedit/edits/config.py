"""The config of an edit: which layers and sites, which vectors, which gates."""

import functools
import math
import operator
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

from headedit.edits.positions import Positions
from headedit.errors import HeadEditError, suggest
from headedit.io import strict
from headedit.io.describe import describe
from headedit.specs.schema import SITE_KINDS

_WORDS_OF_PEFT = {
    "target_modules": "sites=['attention'] names what is edited, a kind of site and not a module",
    "target_parameters": "sites=['attention'] names what is edited, a kind of site and not a parameter",
    "layers_to_transform": "the word is layers, as in layers='8:24'",
    "layers_pattern": "the spec of the model says where its layers are; layers='8:24' chooses among them",
    "r": "an edit is a vector per head and has no rank",
    "lora_alpha": "edits.strength = 0.5 sets a factor on edits once they are attached",
    "lora_dropout": "edits have no dropout; their gates are random in training",
    "bias": "edits leave the biases of the model alone; vectors='offset' adds a vector to each head",
    "modules_to_save": "edits train nothing else; make other parameters trainable after attach",
    "task_type": "edits are for causal LMs alone, so leave it out",
    "inference_mode": "edits.set_adapter(name, inference_mode=True) freezes them",
    "init_lora_weights": "init_std is the standard deviation of the vectors at the start",
    "strength": "edits.strength = 0.5 sets it once the edits are attached",
}


@dataclass(frozen=True, kw_only=True)
class EditConfig:
    """The shape of an edit and of its gates.

    Fields:
        layers: which layers are edited: None for all, a slice such as ``"8:24"`` or ``":4"``, or a list, range or
            array of indices; negative ones count from the last layer that has a site.
        sites: kinds of site, one or a list: ``attention``, ``linear``, ``mlp``. None for attention, or, in a model
            that has none, for its linear mixer.
        mlp_groups: into how many groups of equal width the input of an MLP's down projection is split; each is
            edited as a head is.
        vectors: ``both``, or only ``offset`` or ``scale`` (the paper's ablations).
        gates: ``separate`` for a gate on each vector of a head, ``shared`` for one gate per head, ``none``
            for vectors without gates.
        eval_gate: the value of a gate in eval mode: ``clip``, the rectified deterministic gate of Louizos
            et al. (2018), which reaches exactly 0 and 1; or ``expectation``, E[g], which JoLA names.
        temperature: β of the hard-concrete distribution.
        stretch: (γ, ζ), the interval that the concrete sample is stretched to.
        gate_init: log α at the start; 0 gives P(g ≠ 0) = 0.69.
        init_std: standard deviation of the vectors at the start. 0 makes a fresh edit the identity bit for
            bit; the paper's value is 1e-3.
        positions: the tokens that the edit acts on: ``all``; those of the ``prompt``; ``generated`` ones, which in
            training are the labelled ones; or ``last_prompt``, the last token of each prompt, whose output predicts the
            first generated one. With any but ``all`` a pass must tell its prompts: by labels, as one of ``generate``,
            by a cache, or within ``edits.prompt_lengths``. Such an edit cannot be merged.
    """

    layers: str | list[int] | None = None
    sites: list[str] | str | None = None
    mlp_groups: int = 1
    vectors: Literal["both", "offset", "scale"] = "both"
    gates: Literal["separate", "shared", "none"] = "separate"
    eval_gate: Literal["clip", "expectation"] = "clip"
    temperature: float = 0.33
    stretch: tuple[float, float] = (-0.1, 1.1)
    gate_init: float = 0.0
    init_std: float = 0.0
    positions: Positions = "all"

    def __post_init__(self) -> None:
        for field in fields(self):
            object.__setattr__(self, field.name, _plain(field.name, getattr(self, field.name)))
        if self.gates is None or isinstance(self.gates, bool):
            raise HeadEditError(
                f"gates: found {self.gates}, expected 'separate', 'shared', or the text 'none' for vectors without."
            )
        kinds = self.sites if isinstance(self.sites, list | tuple) else [] if self.sites is None else [self.sites]
        if not kinds and self.sites is not None:
            raise HeadEditError("sites: the list is empty; name at least one kind, such as 'attention'.")
        for kind in kinds:
            if kind not in SITE_KINDS:
                hint = suggest(kind, SITE_KINDS)
                raise HeadEditError(f"sites: found {describe(kind)}, expected kinds of site, not modules.{hint}")
        strict.check(self)
        for name in ("temperature", "stretch", "gate_init", "init_std"):
            value = getattr(self, name)
            if not all(map(math.isfinite, value if isinstance(value, tuple) else [value])):
                raise HeadEditError(f"{name}: found {value}, expected finite numbers.")
        if self.mlp_groups < 1:
            raise HeadEditError(f"mlp_groups: found {self.mlp_groups}, expected 1 or more.")
        if self.temperature <= 0:
            raise HeadEditError(f"temperature: found {self.temperature}, expected a number above 0.")
        if not (self.stretch[0] < 0 and self.stretch[1] > 1):
            raise HeadEditError(f"stretch: found {self.stretch}, expected γ below 0 and ζ above 1.")
        if self.init_std < 0:
            raise HeadEditError(f"init_std: found {self.init_std}, expected 0 or more.")
        if isinstance(self.layers, str) and not re.fullmatch(r"-?\d*:-?\d*(:\d+)?", self.layers):
            raise HeadEditError(
                f"layers: found '{self.layers}', expected a slice such as '8:24', or a list such as [8, 9]; leave it "
                "out for all layers."
            )

    def select_layers(self, available: list[int]) -> list[int]:
        """The layers to edit, out of those that have a site.

        Raises:
            HeadEditError: a layer that has no site is asked for, or none is left.
        """
        last = max(available) + 1
        if self.layers is None:
            return available
        if isinstance(self.layers, str):
            bounds = [int(part) if part else None for part in self.layers.split(":")]
            wanted = [layer for layer in range(last)[slice(*bounds)] if layer in available]
        else:
            wanted = [layer + last if layer < 0 else layer for layer in self.layers]
        missing = [layer for layer in wanted if layer not in available]
        if missing or not wanted:
            what = f"layer {missing[0]} has no site" if missing else "no layer is left"
            raise HeadEditError(f"layers: found {self.layers!r}, but {what}; layers with a site: {_ranges(available)}.")
        return wanted

    @staticmethod
    def from_dict(data: object, where: str = "config") -> "EditConfig":
        """A config from plain data, as in ``headedit_config.json``.

        Args:
            data: a mapping from fields to values.
            where: the source of the data, for messages.

        Raises:
            HeadEditError: a key is unknown, or a value is of a wrong type or out of range.
        """
        if isinstance(data, Mapping):
            word = next((key for key in data if key in _WORDS_OF_PEFT), None)
            if word is not None:
                raise HeadEditError(f"{where}: unknown key '{word}': {_WORDS_OF_PEFT[word]}.")
            if all(key in {field.name for field in fields(EditConfig)} for key in data):
                try:
                    return EditConfig(**data)
                except HeadEditError as error:
                    raise HeadEditError(f"{where}: {error}") from None
        return strict.build(EditConfig, data, where)


def _keywords_checked(init: Callable[..., None]) -> Callable[..., None]:
    """The constructor of a config, with a HeadEditError for a keyword that it does not have."""

    @functools.wraps(init)
    def checked(self: EditConfig, *values: Any, **named: Any) -> None:
        if values:
            raise HeadEditError(
                f"EditConfig: found {describe(values[0])} without a keyword; write which field it is, as in "
                "EditConfig(layers='8:24')."
            )
        known = [field.name for field in fields(EditConfig)]
        for name in named:
            if name not in known:
                why = f": {_WORDS_OF_PEFT[name]}." if name in _WORDS_OF_PEFT else f".{suggest(name, known)}"
                raise HeadEditError(f"EditConfig has no field '{name}'{why}")
        init(self, **named)

    return checked


EditConfig.__init__ = _keywords_checked(EditConfig.__init__)  # type: ignore[method-assign]


def _plain(name: str, given: Any) -> Any:
    """A value of a field in Python's own types, whatever library it came from; one of a wrong type as it is."""
    if name == "layers":
        return _plain_layers(given)
    if name == "sites":
        return [given] if isinstance(given, str) else sorted(given) if isinstance(given, set) else given
    if getattr(given, "shape", None) == () and hasattr(given, "item"):  # a scalar of numpy or torch
        return given.item()
    return given


def _plain_layers(given: Any) -> Any:
    """Layers as a slice in a text, or a list of ints of Python.

    Raises:
        HeadEditError: they are neither.
    """
    if given is None or isinstance(given, str):
        return given
    if isinstance(given, slice):
        bounds = ["" if bound is None else str(bound) for bound in (given.start, given.stop)]
        return ":".join([*bounds, *([] if given.step is None else [str(given.step)])])
    single = isinstance(given, int | float) or getattr(given, "shape", None) == ()
    if single or not isinstance(given, Iterable) or isinstance(given, Mapping | bytes):
        number = None if isinstance(given, bool) else _plain_int(given)
        raise HeadEditError(
            f"layers: found {describe(given)}, expected a slice such as '8:24', or a list such as [8, 9]."
            + (f" Layer {number} alone is [{number}]." if isinstance(number, int) else "")
        )
    layers = [layer if isinstance(layer, bool) else _plain_int(layer) for layer in given]
    wrong = next((layer for layer in layers if type(layer) is not int), None)
    if wrong is not None:
        raise HeadEditError(f"layers: found {describe(wrong)} in a list, expected whole numbers.")
    return sorted(layers) if isinstance(given, set | frozenset) else layers


def _plain_int(layer: Any) -> Any:
    try:
        return operator.index(layer)
    except (TypeError, ValueError, RuntimeError):
        return layer


def _ranges(layers: list[int]) -> str:
    contiguous = layers == list(range(layers[0], layers[-1] + 1))
    return f"{layers[0]} to {layers[-1]}" if contiguous else ", ".join(map(str, layers))
