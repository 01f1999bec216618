"""The certificate of a spec on a live model: the heads are where it says, and editing them does no harm."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from headedit.edits.handle import HeadEdits
from headedit.hf.checkpointing import is_checkpointing
from headedit.hf.modes import evaluating
from headedit.specs import HeadSite, Spec
from headedit.specs.probe import SiteProof, prove_sites, random_ids

_TOLERANCE = 2e-5


@dataclass(frozen=True, kw_only=True)
class Certificate:
    """What was checked.

    Fields:
        model: class of the model.
        spec: the spec.
        sites: the sites it gave.
        proofs: for every site, which heads were where the spec says.
        exact: a fresh edit left every logit as it was, and so did taking it off.
        cache: ``equal``, or why decoding with a cache could not be compared, or how it differed.
        checkpointing: the same of gradients with and without checkpointing.
    """

    model: str
    spec: Spec
    sites: list[HeadSite]
    proofs: list[SiteProof]
    exact: bool
    cache: str
    checkpointing: str

    @property
    def problems(self) -> list[str]:
        """Every problem with the spec; empty for a spec that holds."""
        found = [f"{proof.path}: {problem}" for proof in self.proofs for problem in proof.problems if proof.probed]
        if not any(proof.probed for proof in self.proofs):
            found += [f"{proof.path}: {problem}" for proof in self.proofs[:1] for problem in proof.problems]
        if not self.exact:
            found.append("a fresh edit changes the logits, or taking it off does not restore them")
        for what, outcome in (("cached decoding", self.cache), ("gradients", self.checkpointing)):
            if outcome.startswith("differ"):
                found.append(f"{what}: {outcome}")
        return found

    @property
    def verdict(self) -> str:
        """The outcome in a sentence."""
        if self.ok:
            return "The spec holds."
        return "The spec does not hold." if any(p.probed for p in self.proofs) else "The spec could not be proved."

    @property
    def ok(self) -> bool:
        """The spec holds on this model."""
        return not self.problems

    def __str__(self) -> str:
        """The outcome as text, a line for each thing that was checked."""
        shapes = ", ".join(dict.fromkeys(f"{site.heads} heads of width {site.head_dim}" for site in self.sites))
        under = ", ".join(dict.fromkeys(name for proof in self.proofs for name in proof.proved)) or "no attention"
        lines = [
            f"{self.model}: {self.verdict}",
            f"sites: {sum(proof.ok for proof in self.proofs)} of {len(self.proofs)} proved under {under}; {shapes}",
            f"a fresh edit and its removal: {'exact' if self.exact else 'not exact'}",
            f"decoding with a cache: {self.cache}",
            f"gradients through checkpointing: {self.checkpointing}",
            *(f"note: {note}" for note in dict.fromkeys(note for proof in self.proofs for note in proof.notes)),
            *(f"problem: {problem}" for problem in self.problems),
        ]
        return "\n".join(lines)


def certificate_of(
    model: nn.Module,
    put_on: Callable[[], HeadEdits],
    *,
    input_ids: Tensor | None = None,
    proofs: list[SiteProof] | None = None,
) -> Certificate:
    """Checks edits on a live model, which is returned to its state.

    Args:
        model: a causal LM without edits.
        put_on: attaches fresh edits to it; they are detached afterwards.
        input_ids: one sequence of at least 6 token ids, [1, tokens]; by default a few random ones.
        proofs: of the sites of these edits, in their order; by default they are proved here.

    Raises:
        HeadEditError: ``put_on`` raises it, or the model does not run on the ids.
    """
    device = next((p.device for p in model.parameters() if not p.is_meta), None)  # meta: offloaded
    ids = (random_ids(model) if input_ids is None else input_ids).to(device)
    with torch.random.fork_rng(devices=[]), evaluating(model):
        base = _logits(model, ids)
        edits = put_on()
        try:
            fresh = torch.equal(_logits(model, ids), base)
            proofs = prove_sites(model, edits.sites, input_ids=ids) if proofs is None else proofs
            unedited = _cached(model, ids)
            _randomise(edits)
            cache = _against_the_unedited(_cached(model, ids), unedited)
            checkpointing = _compare_checkpointing(model, edits, ids)
        finally:
            edits.detach()
        exact = fresh and torch.equal(_logits(model, ids), base)
    return Certificate(
        model=type(model).__name__,
        spec=edits.spec,
        sites=edits.sites,
        proofs=proofs,
        exact=exact,
        cache=cache,
        checkpointing=checkpointing,
    )


@torch.no_grad()
def _logits(model: nn.Module, ids: Tensor) -> Tensor:
    torch.manual_seed(0)  # for a model that draws, such as one that hashes
    return _scores(model(input_ids=ids, use_cache=False))


def _scores(output: Any) -> Tensor:
    """The logits, or the last hidden states of a model without a head."""
    scores: Tensor = output.logits if hasattr(output, "logits") else output[0]
    return scores


@torch.no_grad()
def _randomise(edits: HeadEdits) -> None:
    generator = torch.Generator().manual_seed(0)
    for parameter in edits.vector_parameters():
        parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator))


def _cached(model: nn.Module, ids: Tensor) -> float | str:
    """Largest difference of the logits of two steps with a cache from those of the full forward."""
    try:
        with torch.no_grad():
            full = _scores(model(input_ids=ids, use_cache=False))[:, 3:5]
            first = model(input_ids=ids[:, :4], use_cache=True)
            second = model(input_ids=ids[:, 4:5], past_key_values=first.past_key_values, use_cache=True)
    except Exception as error:  # a model without such a cache raises whatever it likes
        return f"not compared ({type(error).__name__}: {str(error).splitlines()[0][:80]})"
    cached = torch.cat([_scores(first)[:, -1:], _scores(second)], dim=1)
    return float((cached - full).abs().max())


def _against_the_unedited(edited: float | str, unedited: float | str) -> str:
    if isinstance(edited, str):
        return edited
    if edited <= _TOLERANCE:
        return "equal"
    if isinstance(unedited, float) and unedited > _TOLERANCE:
        return f"not compared (the unedited model differs by {unedited:.0e})"
    return f"differs by {edited:.0e}"


def _compare_checkpointing(model: nn.Module, edits: HeadEdits, ids: Tensor) -> str:
    enable, disable = _checkpointing_methods(model)
    if enable is None or disable is None or not getattr(model, "supports_gradient_checkpointing", False):
        return "not offered by transformers"
    if is_checkpointing(model):
        return "not compared (it is switched on already)"

    def gradients() -> tuple[Tensor, ...]:
        torch.manual_seed(0)
        loss = _scores(model(input_ids=ids, use_cache=False)).float().square().mean()
        return torch.autograd.grad(loss, edits.vector_parameters())

    with _training(model), _no_hook_left(model):
        plain = gradients()
        try:
            enable({"use_reentrant": False})
            again = gradients()
        except Exception as error:  # in-place changes of frozen embeddings, and the like
            return f"not compared ({type(error).__name__}: {str(error).splitlines()[0][:80]})"
        finally:
            disable()
    return "equal" if all(map(_equal_gradients, plain, again)) else "differ"


def _equal_gradients(one: Tensor, other: Tensor) -> bool:
    """Equal but for the rounding of sums, which is that of their largest terms."""
    return torch.allclose(one, other, rtol=1e-4, atol=max(1e-9, 1e-5 * float(one.abs().max())))


def _checkpointing_methods(model: nn.Module) -> list[Callable[..., None] | None]:
    """The model's methods that turn checkpointing on and off, by their present or their former names."""
    now = [getattr(model, f"activation_checkpointing_{what}", None) for what in ("enable", "disable")]
    return (
        now if all(now) else [getattr(model, f"gradient_checkpointing_{what}", None) for what in ("enable", "disable")]
    )


@contextmanager
def _no_hook_left(model: nn.Module) -> Iterator[None]:
    """Removes the hooks that transformers adds when checkpointing is turned on, and does not remove."""
    before = {module: set(module._forward_hooks) for module in model.modules()}
    try:
        yield
    finally:
        for module, earlier in before.items():
            for key in set(module._forward_hooks) - earlier:
                del module._forward_hooks[key]


@contextmanager
def _training(model: nn.Module) -> Iterator[None]:
    """Train mode without dropout, whose draws would differ."""
    rates = {module: module.p for module in model.modules() if isinstance(module, nn.Dropout)}
    for module in rates:
        module.p = 0.0
    model.train()
    try:
        yield
    finally:
        model.eval()
        for module, rate in rates.items():
            module.p = rate
