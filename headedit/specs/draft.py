"""Drafts the spec of a model whose type has none: traces where attention ran, then the probe chooses the site."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml
from torch import Tensor, nn

from headedit.errors import HeadEditError
from headedit.hf.config import check_decoder, read_config, text_config
from headedit.io import strict
from headedit.specs.probe import SiteProof, prove_sites, random_ids
from headedit.specs.registry import model_type_of
from headedit.specs.schema import Spec
from headedit.specs.sites import HeadSite, find_sites, general, input_width
from headedit.specs.trace import BY_HAND, Call, trace_calls

HEAD_KEYS = ("num_attention_heads", "decoder_attention_heads", "n_head", "n_heads", "num_heads")
WIDTH_KEYS = ("v_head_dim", "head_dim")
PROJECTIONS = ("o_proj", "out_proj", "dense", "c_proj", "wo")
PROBED = 6  # modules that are probed for each attention: the projection, and a norm or two before it, are enough


@dataclass(frozen=True, kw_only=True)
class Draft:
    """A spec that was drafted, and what the probe says of it.

    Fields:
        yaml: the text of the proposed spec file.
        spec: what ``read_spec`` makes of that text.
        proofs: what the probe found at each site, in the order of ``find_sites``.
    """

    yaml: str
    spec: Spec
    proofs: list[SiteProof]

    @property
    def ok(self) -> bool:
        """Whether there are attention sites and the heads of every one are proved."""
        return bool(self.proofs) and all(proof.ok for proof in self.proofs)


@dataclass(frozen=True, kw_only=True)
class _Candidate:
    """The same module of several layers, as a site that the heads may enter."""

    path: str
    calls: dict[int, Call] = field(default_factory=dict)

    def rank(self) -> tuple[int, bool, int]:
        """The innermost attention first, then a projection's usual name, then what is called last."""
        call = next(iter(self.calls.values()))
        named = any(part.lower() in PROJECTIONS for part in self.path.split("."))
        return -call.window.count("."), not named, -call.order

    def sites(self) -> list[HeadSite]:
        """The sites that it proposes, for the probe."""
        return [
            HeadSite(
                layer=layer,
                layers=max(self.calls) + 1,
                kind="attention",
                path=call.path,
                name=call.path,
                heads=call.heads,
                head_dim=call.width * call.groups // call.heads,
                module=call.module,
            )
            for layer, call in self.calls.items()
        ]

    def shares_attention(self, other: "_Candidate") -> bool:
        """Whether the attention that this one takes from is, somewhere, the other's."""
        ours, theirs = ([f"{call.window}." for call in c.calls.values()] for c in (self, other))
        return any(a.startswith(b) or b.startswith(a) for a in ours for b in theirs)


def draft_spec(model: nn.Module, *, input_ids: Tensor | None = None) -> Draft:
    """Proposes a spec for a model from a traced forward pass, and probes it.

    Args:
        model: a live causal LM with a ``config``; it is returned to its state.
        input_ids: one sequence of token ids, [1, tokens]; by default a few random ones.

    Returns:
        The draft; where it is not ``ok``, its proofs say what does not fit.

    Raises:
        HeadEditError: the model has an encoder and a decoder, no attention over heads was seen, no module takes its
            heads, layers differ in a way that the config does not give, or the model cannot run.
    """
    model_type = model_type_of(model)
    check_decoder(model.config)
    ids = random_ids(model) if input_ids is None else input_ids
    candidates = _choose(model, _candidates(trace_calls(model, ids)), ids)
    rules = [_rule(model, model_type, candidate) for candidate in candidates]
    data = {"model_types": [model_type], "sites": {"attention": rules[0] if len(rules) == 1 else rules}}
    spec = strict.build(Spec, data, "the draft")
    object.__setattr__(spec, "source", "the draft")
    proofs = prove_sites(model, find_sites(model, spec, ["attention"]), input_ids=ids)
    text = _comment(model, proofs) + yaml.safe_dump(data, sort_keys=False, width=120)
    return Draft(yaml=text, spec=spec, proofs=proofs)


def _comment(model: nn.Module, proofs: Sequence[SiteProof]) -> str:
    under = ", ".join(dict.fromkeys(name for proof in proofs for name in proof.proved)) or "no attention"
    proved = sum(proof.ok for proof in proofs)
    return (
        f"# {type(model).__name__}: drafted by headedit from a traced forward pass.\n"
        f"# Each head was scaled inside the attention and looked for here: {proved} of {len(proofs)} sites are proved "
        f"({under}).\n"
        "# Not looked at: whether a gate is applied before the site (then add 'position: gated'), mlp and linear "
        "sites, merge.\n"
    )


def _candidates(calls: Iterable[Call]) -> list[_Candidate]:
    found: dict[str, _Candidate] = {}
    for call in calls:
        path, layer = general(call.path)
        found.setdefault(path, _Candidate(path=path)).calls[layer] = call
    by_window: dict[str, list[_Candidate]] = defaultdict(list)
    for candidate in sorted(found.values(), key=_Candidate.rank):
        by_window[general(next(iter(candidate.calls.values())).window)[0]].append(candidate)
    return sorted((c for few in by_window.values() for c in few[:PROBED]), key=_Candidate.rank)


def _choose(model: nn.Module, candidates: Sequence[_Candidate], ids: Tensor) -> list[_Candidate]:
    """One candidate for each attention: the first that the probe proves in all layers, else the likeliest."""
    sites = [site for candidate in candidates for site in candidate.sites()]
    proved = {proof.path for proof in prove_sites(model, sites, input_ids=ids) if proof.ok}
    chosen: list[_Candidate] = []
    for candidate in sorted(candidates, key=lambda c: any(call.path not in proved for call in c.calls.values())):
        if not any(candidate.shares_attention(other) for other in chosen):
            chosen.append(candidate)
    return chosen


def _rule(model: nn.Module, model_type: str, candidate: _Candidate) -> dict[str, Any]:
    """A site rule that names the candidate's modules with the shortest path that no other stack answers to."""
    config, calls = text_config(model), candidate.calls
    rule: dict[str, Any] = {"path": "", "heads": _head_count(model, config, candidate)}
    if any(input_width(call.module) is None for call in calls.values()):  # else find_sites divides it by the heads
        widths = {layer: call.width * call.groups // call.heads for layer, call in calls.items()}
        rule["head_dim"] = _key(config, WIDTH_KEYS, widths) or _one_number(candidate, widths)
    if any(call.groups > 1 for call in calls.values()):
        groups = {layer: call.groups for layer, call in calls.items()}
        keys = sorted(key for key in config.to_dict() if "group" in key)
        rule["groups"] = _key(config, [*keys, *HEAD_KEYS], groups) or _one_number(candidate, groups)
    rule |= _condition(model, config, candidate)
    above, _, below = candidate.path.partition("{layer}")
    names = above.rstrip(".").split(".")
    for first in reversed(range(len(names))):
        rule["path"] = ".".join([*names[first:], "{layer}"]) + below
        try:
            spec = strict.build(Spec, {"model_types": [model_type], "sites": {"attention": rule}}, "the draft")
            found = {general(site.path)[0] for site in find_sites(model, spec)}
        except HeadEditError:
            if first == 0:
                raise
            continue
        if found == {candidate.path}:
            break
    return rule


def _head_count(model: nn.Module, config: Any, candidate: _Candidate) -> int | str | dict[str, str]:
    """The number of heads as a config key, an attribute of the parent, or the number itself."""
    heads = {layer: call.heads for layer, call in candidate.calls.items()}
    others = [k for k in config.to_dict() if "head" in k and not any(no in k for no in ("kv", "key_value", "dim"))]
    aliases = getattr(config, "attribute_map", {})
    preferred = [key for key in HEAD_KEYS if not aliases.get(key, "").startswith("encoder")]  # Bart's is the encoder's
    if key := _key(config, [*preferred, *others], heads):
        return key
    number = _one_number(candidate, heads)
    parents = [model.get_submodule(call.path.rpartition(".")[0]) for call in candidate.calls.values()]
    for attribute in HEAD_KEYS:
        if all(getattr(parent, attribute, None) == number for parent in parents):
            return {"module": attribute}
    return number


def _key(config: Any, keys: Iterable[str], wanted: Mapping[int, int]) -> str | None:
    """The first config key that gives every layer its number."""
    for key in keys:
        values = ((read_config(config, key, layer), number) for layer, number in wanted.items())
        if all(type(value) is int and value == number for value, number in values):
            return key
    return None


def _one_number(candidate: _Candidate, found: Mapping[int, int]) -> int:
    """The number that all layers share, for a rule that names no config key."""
    if len(set(found.values())) > 1:
        listed = ", ".join(f"layer {layer}: {number}" for layer, number in sorted(found.items()))
        raise HeadEditError(
            f"{candidate.path}: the layers differ ({listed}), and no key of the config gives each layer its number. "
            f"{BY_HAND}, with by_layer_type."
        )
    return next(iter(found.values()))


def _condition(model: nn.Module, config: Any, candidate: _Candidate) -> dict[str, Any]:
    """A condition for the candidate's layers only, where other layers have a module of that name without heads."""
    same_name = {general(name)[1]: name for name, _ in model.named_modules() if general(name)[0] == candidate.path}
    others = {layer: name for layer, name in same_name.items() if layer not in candidate.calls}
    types = read_config(config, "layer_types", 0, spread=False)
    if not others:
        return {}
    if isinstance(types, list | tuple) and len(types) > max(same_name):
        wanted = list(dict.fromkeys(types[layer] for layer in sorted(candidate.calls)))
        if not {types[layer] for layer in others} & set(wanted):
            return {"layer_types": wanted}
    parent = {layer: type(model.get_submodule(n.rpartition(".")[0])).__name__ for layer, n in same_name.items()}
    classes = {parent[layer] for layer in candidate.calls}
    if len(classes) == 1 and not classes & {parent[layer] for layer in others}:
        return {"parent_class": classes.pop()}
    return {}
