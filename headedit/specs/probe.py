"""Proves on a live model that the slots of a site are the attention heads that the spec says they are.

We prove that slot h is head h; matching shapes are not enough, for heads of the right number and width may be in
another order, or mixed on their way. So each head is scaled where the attention computes it, in the result of softmax
or of scaled_dot_product_attention, and the site's input must change as if its slot had been scaled there: that slot,
by that factor, and nothing else. The heads of linear mixers are changed by their own parameters instead.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from math import isfinite
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils import logging

from headedit.errors import HeadEditError
from headedit.hf.config import read_config, text_config
from headedit.hf.modes import evaluating
from headedit.hf.sharding import refuse_tensor_parallel
from headedit.specs.head_pass import HeadPass
from headedit.specs.parameter_probe import probe_by_parameters
from headedit.specs.probe_result import ProbeResult, result_of_scaling
from headedit.specs.registry import model_type_of
from headedit.specs.sites import HeadSite

ATTENTIONS = ("eager", "sdpa")


@dataclass(frozen=True, kw_only=True)
class SiteProof:
    """What the probe found at one site.

    Fields:
        path: dotted name of the site's module in the model.
        heads: number of heads, as the spec says.
        head_dim: width of a head, as the spec says.
        probed: whether heads were seen in an attention and scaled there.
        proved: the attention implementations under which every head was where the spec says.
        problems: which head went where instead, or why nothing could be probed; empty when all is well.
        notes: what else a user should know, such as slots that hold several attention heads each.
    """

    path: str
    heads: int
    head_dim: int
    probed: bool
    proved: tuple[str, ...]
    problems: tuple[str, ...]
    notes: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether the site was probed and nothing was wrong."""
        return self.probed and not self.problems


def prove_sites(
    model: nn.Module, sites: Sequence[HeadSite], *, input_ids: Tensor | None = None, factor: float = 0.5
) -> list[SiteProof]:
    """Scales every head inside the attention and looks for it at the site, under eager and sdpa attention.

    Each of the two takes a forward pass for each head, all layers at once, and one more; a linear mixer takes passes of
    its own. The model is returned to its state.

    Args:
        model: the model that the sites were found on.
        sites: the sites to prove.
        input_ids: one sequence of token ids, [1, tokens]; by default a few random ones.
        factor: what a head is multiplied by; neither 0 nor 1, so that scaling differs from any other change.

    Returns:
        A proof for each site, in the order given.

    Raises:
        HeadEditError: the factor shows nothing, a site is not of this model, or the model is tensor-parallel or cannot
            run.
    """
    if not isfinite(factor) or factor in (0, 1):
        raise HeadEditError(f"factor: found {factor}, expected a number other than 0 and 1, such as 0.5.")
    refuse_tensor_parallel(model, (site.module for site in sites), "Proving which head a slot is")
    modules = dict(model.named_modules(remove_duplicate=False))
    for site in sites:
        if modules.get(site.path) is not site.module:
            raise HeadEditError(f"{site.path}: the site is of another model; find the sites on the one to be probed.")
    ids = random_ids(model) if input_ids is None else input_ids
    found: dict[str, list[ProbeResult]] = {}
    with torch.no_grad(), evaluating(model):
        for name in ATTENTIONS:
            with attention_set_to(model, name) as is_set:
                if is_set:
                    found[name] = _probe(model, sites, ids, factor)
        if not found:
            found["the model's attention"] = _probe(model, sites, ids, factor)
    return [_proof(site, {name: results[i] for name, results in found.items()}) for i, site in enumerate(sites)]


def _proof(site: HeadSite, found: Mapping[str, ProbeResult]) -> SiteProof:
    probed = {name: result for name, result in found.items() if result.probed}
    return SiteProof(
        path=site.path,
        heads=site.heads,
        head_dim=site.head_dim,
        probed=bool(probed),
        proved=tuple(name for name, result in probed.items() if not result.problems),
        problems=_by_message({name: result.problems for name, result in (probed or found).items()}),
        notes=_by_message({name: result.notes for name, result in probed.items()}),
    )


def _by_message(said: Mapping[str, Iterable[str]]) -> tuple[str, ...]:
    """Each message once, behind the attention implementations that gave it."""
    sources: dict[str, list[str]] = defaultdict(list)
    for name, messages in said.items():
        for message in messages:
            sources[message].append(name)
    return tuple(f"{', '.join(names)}: {message}" for message, names in sources.items())


@contextmanager
def attention_set_to(model: nn.Module, name: str) -> Iterator[bool]:
    """Gives the model the named attention and puts its own back; yields whether the model has it."""
    base = next((module for module in model.modules() if isinstance(module, PreTrainedModel)), None)
    configs = [config for module in model.modules() for config in _configs(getattr(module, "config", None))]
    before = [(config, config._attn_implementation) for config in configs]
    try:
        yield base is not None and _switch(base, name)
    finally:
        for config, implementation in before:
            config._attn_implementation_internal = implementation


def _configs(config: object) -> Iterator[Any]:
    if isinstance(config, PreTrainedConfig):
        yield config
        for key in config.sub_configs:
            yield from _configs(getattr(config, key, None))


def _switch(base: PreTrainedModel, name: str) -> bool:
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # a model that cannot switch says so at length
    try:
        base.set_attn_implementation(name)
    except (ValueError, ImportError):
        return False
    finally:
        logging.set_verbosity(verbosity)
    return bool(text_config(base)._attn_implementation == name)


def random_ids(model: nn.Module) -> Tensor:
    """Token ids without special ones, [1, 11], or [codebooks, 11] for a model over audio codes."""
    model_type_of(model)  # refuses anything but a transformers model
    text = text_config(model)
    special: set[int] = set()
    for key, value in [*model.config.to_dict().items(), *text.to_dict().items()]:  # type: ignore[union-attr, operator]
        if key.endswith(("_token_id", "_token_index")):
            special.update(value if isinstance(value, list) else [value])
    plain = torch.tensor([i for i in range(min(text.vocab_size, 4096)) if i not in special])
    shape = (read_config(text, "num_codebooks", 0) or 1, 11)
    return plain[torch.randint(len(plain), shape, generator=torch.Generator().manual_seed(0))]


def _probe(model: nn.Module, sites: Sequence[HeadSite], ids: Tensor, factor: float) -> list[ProbeResult]:
    """What the model's present attention shows at each site, by softmax or sdpa, or else by an exponential."""
    results = _probe_by(model, sites, ids, factor, by_exp=False)
    unseen = [i for i, result in enumerate(results) if not result.probed and sites[i].kind == "attention"]
    if unseen:
        again = _probe_by(model, [sites[i] for i in unseen], ids, factor, by_exp=True)
        for i, result in zip(unseen, again, strict=True):
            results[i] = result
    return results


def _probe_by(
    model: nn.Module, sites: Sequence[HeadSite], ids: Tensor, factor: float, *, by_exp: bool
) -> list[ProbeResult]:
    around = [[model.get_submodule(path) for path in _around(site.path)] for site in sites]
    base = HeadPass(sites, dict.fromkeys(chain(*around), 0), by_exp=by_exp).run(model, ids)
    nearest = [next((module for module in modules if base.seen[module]), None) for modules in around]
    windows: dict[nn.Module, int] = {}
    for site, window in zip(sites, nearest, strict=True):
        if window is not None:  # a gate's or a router's softmax may be among those seen, hence the spec's number first
            seen = base.seen[window]
            windows[window] = site.heads if site.heads in seen else windows.get(window, seen[-1])
    heads = range(max(windows.values(), default=0))
    passes = [
        HeadPass(sites, windows, head=head, factor=factor, base=base, by_exp=by_exp).run(model, ids) for head in heads
    ]
    results = []
    for site, window in zip(sites, nearest, strict=True):
        inputs = base.inputs[site.module]
        by_numbers = probe_by_parameters(model, site, ids) if site.kind == "linear" and inputs else None
        if by_numbers is not None:
            results.append(by_numbers)
        elif window is None or not inputs or site.kind == "mlp":
            results.append(ProbeResult(probed=False, problems=(f"not probed: {_reason(site, bool(inputs))}",)))
        else:
            scaled = [p.inputs[site.module] for p in passes[: windows[window]]]
            results.append(result_of_scaling(site, inputs, scaled, factor))
    return results


def _around(path: str) -> list[str]:
    """The modules in which a site's attention may run: its parent, and those above it inside the layer."""
    parents = [path.rpartition(".")[0]]
    while (above := parents[-1].rpartition(".")[0]) and not above.rpartition(".")[2].isdigit():
        parents.append(above)
    return parents


def _reason(site: HeadSite, called: bool) -> str:
    if site.kind == "mlp":
        return "an mlp has no attention heads."
    if not called:
        return "the module was never called in a forward pass over text; name the text decoder's."
    within = _around(site.path)[-1] or "the model"
    return f"neither softmax nor scaled_dot_product_attention ran over heads inside {within}."
