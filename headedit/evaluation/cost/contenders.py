"""Who is compared: a frozen model with edits in several states, its limit, PEFT's methods, and a loop over heads."""

import copy
import itertools
import random
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from headedit.edits import EditConfig, HeadEdits, attach
from headedit.edits.gates import HardConcrete
from headedit.edits.support import Gate, fix
from headedit.errors import HeadEditError
from headedit.optional import library
from headedit.specs import HeadSite, find_sites, find_spec

OPEN_SHARE = 0.05
"""The share of heads that a hardened contender has open."""


@dataclass(frozen=True)
class Prepared:
    """A model that is ready to be run.

    Fields:
        model: shares its weights with the model it was made of.
        trained: the parameters that a step trains.
        penalty: what a step adds to the loss, if anything.
    """

    model: nn.Module
    trained: list[nn.Parameter] = field(default_factory=list)
    penalty: Callable[[], Tensor] | None = None


def share(model: nn.Module, own: tuple[str, ...] = ()) -> nn.Module:
    """A copy of a model with modules of its own, for hooks and modes, and the same tensors.

    Args:
        model: the model.
        own: parts of the names of parameters that are copied all the same.
    """
    tensors = itertools.chain(model.named_parameters(), model.named_buffers())
    memo = {id(t): t for name, t in tensors if not any(part in name for part in own)}
    return copy.deepcopy(model, memo)


def bare(model: nn.Module) -> Prepared:
    """The model itself."""
    return Prepared(share(model))


def limit(model: nn.Module) -> Prepared:
    """One trainable vector in front of the first site: what every method that edits the first layer has to pay."""
    model = share(model)
    first = _sites(model)[0]
    vector = nn.Parameter(torch.zeros(first.width, device=_device(model)))
    first.module.register_forward_pre_hook(lambda module, args: ((args[0] + vector).to(args[0].dtype), *args[1:]))
    return Prepared(model, [vector])


def edited(model: nn.Module) -> Prepared:
    """Edits of every head, as ``attach`` makes them, and the penalty on their gates."""
    edits = _attached(model)
    return Prepared(edits.model, list(edits.module.parameters()), lambda: 1e-3 * edits.penalty())


def hardened(model: nn.Module) -> Prepared:
    """Edits after ``harden``, with a twentieth of the heads open, chosen at random."""
    edits = _attached(model)
    heads = [(i, head) for i, site in enumerate(edits.sites) for head in range(site.heads)]
    chosen = random.Random(0).sample(heads, max(1, round(OPEN_SHARE * len(heads))))
    fix(edits.module, [Gate(i, vector, head) for i, head in chosen for vector in ("offset", "scale")])
    edits.harden()
    return Prepared(edits.model)


def merged(model: nn.Module) -> Prepared:
    """Edits of every head, merged: a plain model with a bias at the projections."""
    paths = tuple(f"{site.path}." for site in _sites(model))
    return Prepared(_attached(model, own=paths).merge_and_unload())


def lora(model: nn.Module) -> Prepared:
    """LoRA of rank 8 where PEFT puts it by default, on a Llama's queries and values (Hu et al., arXiv 2106.09685)."""
    return put_lora(share(model))


def put_lora(model: nn.Module) -> Prepared:
    """The same on the model itself."""
    return _adapted(model, library("peft", "A peer, LoRA or IA3,").LoraConfig(r=8, lora_alpha=16))


def ia3(model: nn.Module) -> Prepared:
    """IA3 where PEFT puts it by default, on a Llama's keys, values and MLP (Liu et al., arXiv 2205.05638)."""
    return _adapted(share(model), library("peft", "A peer, LoRA or IA3,").IA3Config())


def loop(model: nn.Module) -> Prepared:
    """The same edits computed head by head in Python, with a copy of each head, as the published codes have them."""
    model = share(model)
    loops = nn.ModuleList(_Loop(site) for site in _sites(model))
    for site, edit in zip(_sites(model), loops, strict=True):
        site.module.register_forward_pre_hook(lambda module, args, edit=edit: (edit(args[0]), *args[1:]))
    model.add_module("loops", loops)
    gates = HardConcrete()

    def penalty() -> Tensor:
        each = [p for name, p in loops.named_parameters() if name.endswith("gate")]
        return 1e-3 * torch.stack([gates.open_probability(p).sum() for p in each]).sum()

    return Prepared(model, list(loops.parameters()), penalty)


CONTENDERS: dict[str, Callable[[nn.Module], Prepared]] = {
    "bare": bare,
    "limit": limit,
    "edited": edited,
    "hardened": hardened,
    "merged": merged,
    "lora": lora,
    "ia3": ia3,
    "loop": loop,
}
"""Contenders by name: each makes a model ready, and leaves the one that it is given as it is."""

TRAINED = ("limit", "edited", "lora", "ia3", "loop")
"""Those that a training step is measured of; the first is what the others are compared with."""

INFERRED = ("bare", "edited", "hardened", "merged", "lora", "ia3", "loop")
"""Those that a forward pass is measured of; the first is what the others are compared with."""


class _Loop(nn.Module):
    """The edit of one site, a head at a time."""

    def __init__(self, site: HeadSite) -> None:
        super().__init__()
        device = next(site.module.parameters()).device
        self.heads, self.head_dim, self.gates = site.heads, site.head_dim, HardConcrete()
        self.offset, self.scale = (
            nn.Parameter(torch.zeros(site.heads, site.head_dim, device=device)) for _ in range(2)
        )
        self.offset_gate, self.scale_gate = (nn.Parameter(torch.zeros(site.heads, device=device)) for _ in range(2))

    def forward(self, z: Tensor) -> Tensor:
        gate = self.gates.sample if self.training else self.gates.clip
        heads = z.view(*z.shape[:-1], self.heads, self.head_dim)
        edited_heads = []
        for i in range(self.heads):
            head = heads[..., i, :].clone()
            head = head * (1 + gate(self.scale_gate[i]) * self.scale[i])
            edited_heads.append(head + gate(self.offset_gate[i]) * self.offset[i])
        return torch.stack(edited_heads, -2).flatten(-2).to(z.dtype)


def _attached(model: nn.Module, own: tuple[str, ...] = ()) -> HeadEdits:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return attach(share(model, own), config=EditConfig(init_std=1e-3))


def _adapted(model: nn.Module, config: Any) -> Prepared:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft and transformers about each other
        try:
            adapted: nn.Module = library("peft", "A peer, LoRA or IA3,").get_peft_model(model, config)
        except ValueError as error:
            raise HeadEditError(f"peft cannot adapt a {type(model).__name__}: {error}") from None
    return Prepared(adapted, [p for p in adapted.parameters() if p.requires_grad])


def _sites(model: nn.Module) -> list[HeadSite]:
    return find_sites(model, find_spec(model))


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device
