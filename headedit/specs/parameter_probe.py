"""Proves the slots of a mixer without softmax by its per-head parameters.

Linear attention, state-space and matrix-memory mixers have small parameters with one number per head (decays, gate
biases, skips). Changing the number of head h must change slot h of the site's input and nothing else. That proves
the place of every head; it does not prove the factor of a scaling.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack

import torch
from einops import reduce
from torch import Tensor, nn

from headedit.specs.probe_result import ProbeResult
from headedit.specs.sites import HeadSite

_STEPS = (0.5, 4.0, -4.0)  # a decay near its end shows a large change only


def probe_by_parameters(model: nn.Module, site: HeadSite, ids: Tensor) -> ProbeResult | None:
    """Changes each head's own numbers and compares what moves at a site; None where no number has an effect.

    A tensor counts as having a number per head where every change of it that has an effect moves that head's slot
    alone. The heads that no such tensor moves are the problem.
    """
    mixer = model.get_submodule(site.path.rpartition(".")[0])
    base = _input_of(model, site, ids)
    found: dict[int, str] = {}
    against: list[str] = []
    for name, values in _numbers_per_head(mixer, site.heads):
        moved = [_moved_by(model, site, ids, values, head, base) for head in range(site.heads)]
        wrong = [head for head, slots in enumerate(moved) if slots and slots != [head]]
        against += [f"the numbers of head {head} in {name} moved slots {_listed(moved[head])}." for head in wrong]
        if not wrong:
            found.update({head: name for head, slots in enumerate(moved) if slots})
    if len(found) == site.heads:
        names = ", ".join(sorted(set(found.values())))
        return ProbeResult(
            notes=(f"each head was found by its own numbers in {names}; its place is proved, not the factor.",)
        )
    if not found and not against:
        return None
    lost = [head for head in range(site.heads) if head not in found]
    return ProbeResult(problems=(f"no numbers of their own move the slots {_listed(lost)} alone.", *against))


def _numbers_per_head(mixer: nn.Module, heads: int) -> Iterator[tuple[str, Tensor]]:
    for name, values in (*mixer.named_parameters(), *mixer.named_buffers()):
        if values.is_floating_point() and values.dim() and (values.shape[0] == heads or values.numel() == heads):
            yield name, values


def _moved_by(model: nn.Module, site: HeadSite, ids: Tensor, values: Tensor, head: int, base: Tensor) -> list[int]:
    """The slots that changing one head's numbers moves, by the smallest change that moves any."""
    flat = values.data.view(site.heads, -1)
    before = flat[head].clone()
    for step in _STEPS:
        flat[head] += step
        try:
            changed = _input_of(model, site, ids)
        finally:
            flat[head] = before
        differs = (changed - base).abs() > 1e-6 * base.abs().max()
        if differs.any():
            by_slot = reduce(differs, "rows (heads width) -> heads", "any", heads=site.heads)
            return by_slot.nonzero().flatten().tolist()
    return []


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))


def _input_of(model: nn.Module, site: HeadSite, ids: Tensor) -> Tensor:
    """The site's input in a forward pass, [rows, heads * head_dim]."""
    seen: list[Tensor] = []
    with ExitStack() as hooks, torch.no_grad():
        note = site.module.register_forward_pre_hook(lambda module, args: seen.append(args[0].detach().clone()))
        hooks.callback(note.remove)
        model(input_ids=ids, use_cache=False)
    return torch.cat([x.reshape(-1, site.width) for x in seen])
