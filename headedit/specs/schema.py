"""What a spec file may say: where one architecture family keeps its heads.

A spec is data. Everything that varies between architectures is a field here; no model class is named in
code. The dataclasses are read by ``headedit.io.strict``, which refuses what they do not know.
"""

import dataclasses
import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from headedit.errors import HeadEditError
from headedit.io import strict
from headedit.io.yaml import read_yaml

SITE_KINDS = ("attention", "linear", "mlp")


@dataclass(frozen=True, kw_only=True)
class NumberRule:
    """A number of heads or a width that is not simply one config key.

    Exactly one source is given:
        config: a key of the text decoder's config; a list there is read at the layer's index.
        module: an attribute of the module that holds the projection (``self_attn.num_heads``).
        value: the number itself.
        by_layer_type: a rule for each entry of the config's ``layer_types``.

    ``times`` and ``divide`` are applied to what was found.
    """

    config: str | None = None
    module: str | None = None
    value: int | None = None
    by_layer_type: "dict[str, int | str | NumberRule] | None" = None
    times: int = 1
    divide: int = 1

    def __post_init__(self) -> None:
        sources = [self.config, self.module, self.value, self.by_layer_type]
        given = sum(source is not None for source in sources)
        if given != 1:
            raise HeadEditError(f"expected exactly one of config, module, value, by_layer_type; found {given} of them.")
        if min(self.times, self.divide) < 1:
            raise HeadEditError("times and divide must be 1 or more.")


@dataclass(frozen=True, kw_only=True)
class SiteRule:
    """One place in a layer where heads can be edited.

    Fields:
        path: dotted module name below the text decoder, ``{layer}`` standing for the layer's index. The
            module's input is the site, so a norm's name puts the edit in front of the norm.
        heads: number of heads, as a config key, a number or a ``NumberRule``.
        head_dim: width of a head, likewise; left out or absent from the config: input width / heads.
        groups: number of groups that the input is split into, [..., groups, width / groups], where the module
            treats each group alone and its own input size is that of one group.
        position: ``raw`` where the heads arrive as attention made them, ``gated`` where an elementwise
            gate was applied before (a scale commutes with it, an offset lands behind it).
        layer_types: only layers whose entry in the config's ``layer_types`` is in this list.
        parent_class: only where the class name of the module that holds the site fits this glob.
        fused_by: which kernel may take the weight of the site's module and not call it, and how to do without that
            kernel, as a sentence without its full stop.
    """

    path: str
    heads: int | str | NumberRule
    head_dim: int | str | NumberRule | None = None
    groups: int | str | NumberRule = 1
    position: Literal["raw", "gated"] = "raw"
    layer_types: list[str] | None = None
    parent_class: str | None = None
    fused_by: str | None = None

    def __post_init__(self) -> None:
        if self.path.split(".").count("{layer}") != 1 or not all(self.path.split(".")):
            raise HeadEditError(
                f"path: found '{self.path}', expected dotted module names with '{{layer}}' once, "
                "as in layers.{layer}.self_attn.o_proj."
            )


@dataclass(frozen=True, kw_only=True)
class MergeRule:
    """How an offset becomes part of a plain checkpoint, where the projection has no bias of its own.

    Fields:
        bias_key: the config switch that gives the projection a bias.
        rehome: a model type to re-export to when the projection can have none.
        never: the reason why a plain checkpoint cannot take an offset.
    """

    bias_key: str | None = None
    rehome: str | None = None
    never: str | None = None

    def __post_init__(self) -> None:
        if sum(v is not None for v in (self.bias_key, self.rehome, self.never)) != 1:
            raise HeadEditError("expected exactly one of bias_key, rehome, never.")


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """A model, or a configuration of it, that a hook cannot edit; the reason is shown to the user.

    ``when`` gives config values that must all be met for the refusal (none: always). A value is compared
    for equality; a text such as ``">1"`` compares numbers.
    """

    reason: str
    when: dict[str, int | float | bool | str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Spec:
    """Where the model types of one family keep their heads.

    Fields:
        model_types: values of ``config.model_type`` that this spec describes.
        sites: for each kind of site, one rule or several.
        root: name of the module that the paths are below, where more than one would fit.
        merge: how an offset can be folded into the weights.
        refuse: configurations that cannot be edited, with the reason.
        no_reentrant: the reason why reentrant gradient checkpointing would give wrong gradients, silently; a
            training step that uses it is refused.
        no_routing: the reason why an edit cannot be chosen by the row of a batch: what enters a site does not keep the
            rows of the batch in their order.
        padding: the sides on which masked padding changes no logits of the other tokens, with the cache and without:
            ``both``, ``left``, ``right`` or ``neither``. Generation pads on the left, training on the right.
        source: the file it was read from; not a key of the file.
    """

    model_types: list[str]
    sites: dict[Literal["attention", "linear", "mlp"], SiteRule | list[SiteRule]] = field(default_factory=dict)
    root: str | list[str] | None = None
    merge: MergeRule | None = None
    refuse: list[Refusal] = field(default_factory=list)
    no_reentrant: str | None = None
    no_routing: str | None = None
    padding: Literal["both", "left", "right", "neither"] = "both"
    source: str = field(default="spec", init=False, compare=False)

    def __post_init__(self) -> None:
        if not self.model_types:
            raise HeadEditError("model_types: the list is empty; name at least one config.model_type.")
        if not self.sites and not self.refuse:
            raise HeadEditError("sites: nothing is given; a spec names a site or refuses with a reason.")

    @property
    def position(self) -> str:
        """``raw`` or ``gated``, of the sites that are edited by default; ``refused`` where there are none."""
        rules = self.rules(self.kinds()[0]) if self.sites else []
        return ", ".join(sorted({rule.position for rule in rules})) or "refused"

    @property
    def offset(self) -> str:
        """Whether an offset becomes part of a plain checkpoint, and by which switch or as which other type."""
        if not self.sites:
            return "-"
        if self.merge is None:
            return "yes"
        if self.merge.never is not None:
            return "no"
        return f"by {self.merge.bias_key}" if self.merge.rehome is None else f"as {self.merge.rehome}"

    def kinds(self) -> list[str]:
        """The kinds of site that there are rules for: attention first, if it is among them."""
        return [kind for kind in SITE_KINDS if self.rules(kind)]

    def rules(self, kind: str) -> list[SiteRule]:
        """The rules of one kind of site, none if the spec has no such kind."""
        found = {str(k): v for k, v in self.sites.items()}.get(kind, [])
        return found if isinstance(found, list) else [found]

    def to_dict(self) -> dict[str, Any]:
        """Plain data that ``Spec`` can be built from again, defaults left out."""
        data = dataclasses.asdict(self)
        data.pop("source")
        stripped = _without_defaults(data)
        assert isinstance(stripped, dict)
        return stripped

    def digest(self) -> str:
        """SHA-256 of what the spec says of heads, without padding, comments and layout, in hexadecimal."""
        said = {key: value for key, value in self.to_dict().items() if key != "padding"}
        return hashlib.sha256(yaml.safe_dump(said, sort_keys=True).encode()).hexdigest()


_DEFAULTS: dict[str, object] = {"position": "raw", "times": 1, "divide": 1, "groups": 1, "padding": "both"}


def _without_defaults(data: object) -> object:
    if isinstance(data, dict):
        return {
            key: _without_defaults(value)
            for key, value in data.items()
            if value is not None and value not in ({}, []) and _DEFAULTS.get(key, ...) != value
        }
    if isinstance(data, list | tuple):
        return [_without_defaults(item) for item in data]
    return data


def read_spec(path: Path) -> Spec:
    """The spec in a YAML file.

    Raises:
        HeadEditError: the file cannot be read, is not YAML, or says something the schema does not know.
    """
    spec = strict.build(Spec, read_yaml(path), str(path))
    object.__setattr__(spec, "source", str(path))
    return spec
