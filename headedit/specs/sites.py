"""A spec applied to a live model: the list of places where its heads can be edited."""

import dataclasses
import difflib
import fnmatch
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import nn

from headedit.errors import HeadEditError
from headedit.hf.compiled import uncompiled_path
from headedit.hf.config import read_config, text_config
from headedit.specs.numbers import layer_type, meets, number
from headedit.specs.schema import SITE_KINDS, NumberRule, Refusal, SiteRule, Spec

MODULE_NAME = "headedit"
"""The name under which a model carries its edits as a submodule while they are attached."""


@dataclass(frozen=True, kw_only=True)
class HeadSite:
    """One module whose input holds a layer's heads side by side, [..., heads * head_dim].

    Fields:
        layer: index of the layer.
        layers: number of layers in its stack, those without a site included.
        kind: ``attention``, ``linear`` or ``mlp``.
        path: dotted name of the module in the model.
        name: the same without the modules above the text decoder's layers; it does not change when the
            model is wrapped, and names the site in saved files.
        heads: number of heads.
        head_dim: width of a head.
        groups: into how many groups the input is split, [..., groups, heads * head_dim / groups]; 1 for none.
        position: ``raw`` or ``gated``, as in the spec.
        module: the module itself.
    """

    layer: int
    layers: int
    kind: str
    path: str
    name: str
    heads: int
    head_dim: int
    groups: int = 1
    position: Literal["raw", "gated"] = "raw"
    module: nn.Module = field(repr=False, compare=False)

    @property
    def width(self) -> int:
        """Size of the last dimension of the module's input: heads * head_dim."""
        return self.heads * self.head_dim


def find_sites(
    model: nn.Module, spec: Spec, kinds: Iterable[str] | None = None, *, mlp_groups: int = 1
) -> list[HeadSite]:
    """The sites of the given kinds, ordered by layer.

    Args:
        model: a live causal LM with a ``config``.
        spec: where this family keeps its heads.
        kinds: which kinds of site to find; by default attention, or what the spec has where it has none.
        mlp_groups: into how many groups the input of an MLP site is split, in place of heads.

    Raises:
        HeadEditError: the spec refuses this configuration, names no such kind, matches no module or
            modules under several parents, or gives heads that do not fill the module's input.
    """
    config = text_config(model)
    for refusal in spec.refuse:
        if all(meets(config, key, wanted) for key, wanted in refusal.when.items()):
            raise HeadEditError(_refused(config, spec, refusal))
    edits = model._modules.get(MODULE_NAME)
    named = model.named_modules(memo=set() if edits is None else {edits})  # there may be a thousand adapters
    modules = {uncompiled_path(path): module for path, module in named}
    sites: list[HeadSite] = []
    for kind in spec.kinds()[:1] if kinds is None else kinds:
        rules = [
            dataclasses.replace(rule, heads=mlp_groups) if kind == "mlp" and mlp_groups != 1 else rule
            for rule in spec.rules(kind)
        ]
        if not rules:
            raise HeadEditError(f"{spec.source}: has no sites of kind '{kind}'; it has {', '.join(spec.kinds())}.")
        found = [site for rule in rules for site in _sites_of(model, modules, config, spec, kind, rule)]
        if not found:
            paths = ", ".join(rule.path for rule in rules)
            raise HeadEditError(
                f"{spec.source}: no module of this {type(model).__name__} is a {kind} site by the path "
                f"{paths}.{_closest_paths(rules, modules)} Compare the path with print(model)."
            )
        sites += found
    names = [site.path for site in sites]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise HeadEditError(f"{spec.source}: {twice[0]} is named by two rules; let each site have one.")
    return sorted(sites, key=lambda site: (site.layer, SITE_KINDS.index(site.kind)))


def _sites_of(
    model: nn.Module,
    modules: Mapping[str, nn.Module],
    config: Any,
    spec: Spec,
    kind: str,
    rule: SiteRule,
) -> Iterator[HeadSite]:
    matches = _matches(model, modules, spec, rule)
    layers = {prefix: _count_layers(modules, rule, prefix) for prefix in {prefix for _, prefix, _ in matches}}
    for layer, prefix, path in matches:
        parent = modules[path.rpartition(".")[0]]
        if rule.layer_types is not None and layer_type(config, layer, spec) not in rule.layer_types:
            continue
        if rule.parent_class and not fnmatch.fnmatch(type(parent).__name__, rule.parent_class):
            continue
        module = modules[path]
        where = f"{spec.source}: {kind} site {path}"
        heads, groups = (
            _required(key, getattr(rule, key), config, parent, layer, spec, where) for key in ("heads", "groups")
        )
        width = input_width(module)
        width = None if width is None else width * groups
        dim = None
        if rule.head_dim is not None:
            dim = number(rule.head_dim, config, parent, layer, spec, f"{where}: head_dim")
        if dim is None:
            dim = _divide(width, heads, where)
        if heads * dim != (width or heads * dim):
            raise HeadEditError(
                f"{where}: {heads} heads of width {dim} make {heads * dim}, but the module "
                f"({type(module).__name__}) takes {width} inputs. Correct heads or head_dim."
            )
        yield HeadSite(
            layer=layer,
            layers=layers[prefix],
            kind=kind,
            path=path,
            name=path.removeprefix(prefix).lstrip("."),
            heads=heads,
            head_dim=dim,
            groups=groups,
            position=rule.position,
            module=module,
        )


def _required(
    key: str, rule: int | str | NumberRule, config: Any, parent: nn.Module, layer: int, spec: Spec, where: str
) -> int:
    found = number(rule, config, parent, layer, spec, f"{where}: {key}")
    if found is None:
        raise HeadEditError(f"{where}: {key}: the config has no value for {rule!r}.")
    return found


def input_width(module: nn.Module) -> int | None:
    """Size of the last dimension that a projection or norm takes; None where the module does not say."""
    for attribute in ("in_features", "nx"):  # Linear and its quantized kin; Conv1D
        value = getattr(module, attribute, None)
        if isinstance(value, int):
            return value
    weight = getattr(module, "weight", None)
    return int(weight.shape[-1]) if weight is not None and weight.dim() > 0 else None


def _divide(width: int | None, heads: int, where: str) -> int:
    if width is None:
        raise HeadEditError(f"{where}: the input width of the module is unknown; give head_dim.")
    if width % heads:
        raise HeadEditError(f"{where}: {width} inputs do not divide into {heads} heads; give head_dim.")
    return width // heads


def _matches(
    model: nn.Module, modules: Mapping[str, nn.Module], spec: Spec, rule: SiteRule
) -> list[tuple[int, str, str]]:
    """(layer, prefix, path) of the modules that the rule's path names below one common parent."""
    before, after = map(re.escape, rule.path.split("{layer}"))
    pattern = re.compile(rf"(?:(?P<prefix>.+)\.)?{before}(?P<layer>\d+){after}")
    found = []
    for path in modules:
        match = pattern.fullmatch(path)
        if match:
            found.append((int(match["layer"]), match["prefix"] or "", path))
    roots = [spec.root] if isinstance(spec.root, str) else spec.root
    if roots is not None:
        found = [m for m in found if any(f".{m[1]}".endswith(f".{root}") for root in roots)]
    prefixes = {prefix for _, prefix, _ in found}
    if len(prefixes) > 1:
        decoder = _decoder_name(model, modules)
        inside = [prefix for prefix in prefixes if f"{prefix}.".startswith(f"{decoder}.")]
        if decoder is None or len(inside) != 1:
            listed = ", ".join(sorted(prefixes))
            raise HeadEditError(
                f"{spec.source}: the path {rule.path} fits below several modules: {listed}. "
                "Say which one holds the text decoder's layers with the key 'root'."
            )
        found = [match for match in found if match[1] == inside[0]]
    return found


def _count_layers(modules: Mapping[str, nn.Module], rule: SiteRule, prefix: str) -> int:
    above = [prefix, rule.path.partition("{layer}")[0].rstrip(".")]
    stack = re.escape("".join(f"{part}." for part in above if part))
    return 1 + max(int(match[1]) for match in (re.fullmatch(rf"{stack}(\d+)", name) for name in modules) if match)


def _decoder_name(model: nn.Module, modules: Mapping[str, nn.Module]) -> str | None:
    get_decoder = getattr(model, "get_decoder", None)
    decoder = get_decoder() if callable(get_decoder) else None
    return next((name for name, module in modules.items() if module is decoder), None)


def _closest_paths(rules: Iterable[SiteRule], modules: Mapping[str, nn.Module]) -> str:
    tails = {tail for name in modules for tail in _tails(general(name)[0]) if "{layer}." in tail}
    for rule in rules:
        close = difflib.get_close_matches(rule.path, sorted(tails), n=1, cutoff=0.6)
        if close:
            return f" Did you mean '{close[0]}'?"
    return ""


def general(path: str) -> tuple[str, int]:
    """A module's name with ``{layer}`` for the first number in it, and that number."""
    match = re.search(r"(?<![^.])\d+(?![^.])", path)
    return ("", -1) if match is None else (f"{path[: match.start()]}{{layer}}{path[match.end() :]}", int(match[0]))


def _tails(name: str) -> Iterator[str]:
    parts = name.split(".")
    yield from (".".join(parts[i:]) for i in range(len(parts)))


def _refused(config: Any, spec: Spec, refusal: Refusal) -> str:
    settings = ", ".join(f"{key}={read_config(config, key, 0, spread=False)!r}" for key in refusal.when)
    what = f"{config.model_type} with {settings}" if settings else f"The model type {config.model_type}"
    return f"{what} cannot be edited: {refusal.reason} ({spec.source})"
