"""Other methods: LoRA and IA3 by PEFT, the same edits by pyvene, by nnsight and by a loop; and all methods by name.

pyvene (Wu et al., "pyvene: A library for understanding and improving PyTorch models via interventions", NAACL 2024,
arXiv 2403.07809) and nnsight (Fiotto-Kaufman et al., ICLR 2025, arXiv 2407.14561) make the same edits of every head
without gates: z' = (1 + m) ⊙ z + a on the input of the projection of each site.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from headedit.bench.cost.methods import Prepared, bare, edited, hardened, merged, share, sites_of, upper_bound
from headedit.edits.gates import HardConcrete
from headedit.errors import HeadEditError
from headedit.io.optional import import_optional
from headedit.specs import HeadSite


def lora(model: nn.Module) -> Prepared:
    """LoRA of rank 8 where PEFT puts it by default, on a Llama's queries and values (Hu et al., arXiv 2106.09685)."""
    return put_lora(share(model))


def put_lora(model: nn.Module) -> Prepared:
    """The same on the model itself."""
    return _adapted(model, _library("peft").LoraConfig(r=8, lora_alpha=16))


def save_lora(prepared: Prepared, folder: Path) -> None:
    """Writes the adapter of ``lora`` into a folder, as PEFT does."""
    adapted: Any = prepared.model
    adapted.save_pretrained(folder, save_embedding_layers=False)


def load_lora(model: nn.Module, folder: Path) -> Prepared:
    """Loads a saved adapter of PEFT on the model itself."""
    with _quiet():
        return Prepared(_library("peft").PeftModel.from_pretrained(model, folder))


def ia3(model: nn.Module) -> Prepared:
    """IA3 where PEFT puts it by default, on a Llama's keys, values and MLP (Liu et al., arXiv 2205.05638)."""
    return _adapted(share(model), _library("peft").IA3Config())


def pyvene(model: nn.Module) -> Prepared:
    """An intervention of pyvene at every site, at all positions, in an ``IntervenableModel``.

    pyvene adds and removes its hooks in every call. It writes into the input tensor of the projection, which the
    backward pass of PyTorch's attention needs unchanged; where gradients are computed the projection therefore gets a
    copy, without which this method could not be trained.
    """
    return put_pyvene(share(model))


def put_pyvene(model: nn.Module) -> Prepared:
    """The same on the model itself."""
    of = _library("pyvene")
    kinds = (of.SourcelessIntervention, of.TrainableIntervention, of.DistributedRepresentationIntervention)

    class Intervention(*kinds):  # type: ignore[misc]
        def __init__(self, affine: _Affine) -> None:
            super().__init__(keep_last_dim=True)
            self.affine = affine

        def forward(self, base: Tensor, source: Tensor | None = None, subspaces: Any = None) -> Any:
            return self.affine(base)

    representations, affines = [], []
    for site in sites_of(model):
        affines.append(_Affine(site))
        model.set_submodule(site.path, _Copied(site.module))
        place = f"{site.path}.module.input"
        representations.append(of.RepresentationConfig(component=place, intervention=Intervention(affines[-1])))
    intervenable = of.IntervenableModel(of.IntervenableConfig(representations=representations), model)
    return _called(intervenable, affines, lambda inputs: intervenable(inputs)[1])


def nnsight(model: nn.Module) -> Prepared:
    """A stored edit of nnsight, which replays when the edited model is called without a trace (``trace=False``)."""
    return put_nnsight(share(model))


def put_nnsight(model: nn.Module) -> Prepared:
    """The same on the model itself."""
    sites = sites_of(model)
    affines = [_Affine(site) for site in sites]
    changes = [(site.path, affine) for site, affine in zip(sites, affines, strict=True)]
    wrapped = _library("nnsight").NNsight(model)
    with wrapped.edit() as (_, changed):
        for path, affine in changes:
            module = changed.get(path)
            module.input = affine(module.input)
    return _called(model, affines, lambda inputs: changed.trace(**inputs, trace=False))


def loop(model: nn.Module) -> Prepared:
    """The same edits computed head by head in Python, with a copy of each head, as in published implementations."""
    model = share(model)
    loops = nn.ModuleList(_Loop(site) for site in sites_of(model))
    for site, edit in zip(sites_of(model), loops, strict=True):
        site.module.register_forward_pre_hook(lambda module, args, edit=edit: (edit(args[0]), *args[1:]))
    model.add_module("loops", loops)
    gates = HardConcrete()

    def penalty() -> Tensor:
        each = [p for name, p in loops.named_parameters() if name.endswith("gate")]
        return 1e-3 * torch.stack([gates.open_probability(p).sum() for p in each]).sum()

    return Prepared(model, list(loops.parameters()), penalty)


UPPER_BOUND = "upper bound"

METHODS: dict[str, Callable[[nn.Module], Prepared]] = {
    "bare": bare,
    UPPER_BOUND: upper_bound,
    "edited": edited,
    "hardened": hardened,
    "merged": merged,
    "lora": lora,
    "ia3": ia3,
    "pyvene": pyvene,
    "nnsight": nnsight,
    "loop": loop,
}
"""Methods by name: each prepares a model for a run and does not change the model it is given."""

TRAINED = (UPPER_BOUND, "edited", "lora", "ia3", "pyvene", "nnsight", "loop")
"""Methods whose training step is measured; the others are compared with the first."""

INFERRED = ("bare", "edited", "hardened", "merged", "lora", "ia3", "pyvene", "nnsight", "loop")
"""Methods whose forward pass is measured; the others are compared with the first."""

ATTACHED: dict[str, Callable[[nn.Module], Prepared]] = {
    "lora": put_lora,
    "pyvene": put_pyvene,
    "nnsight": put_nnsight,
}
"""Other methods whose attaching is measured next to that of edits; each changes the model that it is given."""


class _Affine(nn.Module):
    """z' = (1 + m) ⊙ z + a over all heads of a site; z is [..., width]."""

    def __init__(self, site: HeadSite) -> None:
        super().__init__()
        device = next(site.module.parameters()).device
        self.scale, self.offset = (nn.Parameter(torch.zeros(site.width, device=device)) for _ in range(2))

    def forward(self, z: Tensor) -> Tensor:
        return ((1 + self.scale) * z + self.offset).to(z.dtype)


class _Copied(nn.Module):
    """Calls a module with a copy of its input where gradients are computed, so that writes change no other tensor."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, z: Tensor) -> Any:
        return self.module(z.clone() if torch.is_grad_enabled() else z)


class _Wrapped(nn.Module):
    """A wrapped model that is called like the model itself."""

    def __init__(self, model: nn.Module, affines: list[_Affine], call: Callable[[dict[str, Any]], Any]) -> None:
        super().__init__()
        self.model, self.affines, self.call = model, nn.ModuleList(affines), call

    def forward(self, **inputs: Any) -> Any:
        return self.call(inputs)


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


def _called(model: nn.Module, affines: list[_Affine], call: Callable[[dict[str, Any]], Any]) -> Prepared:
    prepared = _Wrapped(model, affines, call).eval()
    return Prepared(prepared, list(prepared.affines.parameters()))


def _adapted(model: nn.Module, config: Any) -> Prepared:
    try:
        with _quiet():
            adapted: nn.Module = _library("peft").get_peft_model(model, config)
    except ValueError as error:
        raise HeadEditError(f"peft cannot adapt a {type(model).__name__}: {error}") from None
    return Prepared(adapted, [p for p in adapted.parameters() if p.requires_grad])


@contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft and transformers about each other
        yield


def _library(name: str) -> Any:
    return import_optional(name, "Comparing with it")
