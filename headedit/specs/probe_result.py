"""What scaling each head changed at a site, compared with what the spec says of it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from headedit.specs.sites import HeadSite


@dataclass(frozen=True, kw_only=True)
class ProbeResult:
    """What one attention implementation showed at one site.

    Fields:
        probed: whether heads were seen and scaled.
        problems: where the model differs from the spec.
        notes: what else a user should know.
    """

    probed: bool = True
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def result_of_scaling(site: HeadSite, base: list[Tensor], scaled: list[list[Tensor]], factor: float) -> ProbeResult:
    """Compares what each head moved at the site with what the spec says.

    Args:
        site: the site, as the spec gives it.
        base: the inputs of the site in the base pass, a tensor per call.
        scaled: the same in a pass per head, in which that head was scaled.
        factor: what it was scaled by.
    """
    says = f"the spec says {site.heads} heads of width {site.head_dim}"
    shapes = [x.shape for x in base]
    for shape in shapes:
        if site.width not in (shape[-1], prod(shape[-2:])):
            return ProbeResult(problems=(f"the module was given {tuple(shape)}, but {says}, {site.width} in all.",))
    if any([x.shape for x in inputs] != shapes for inputs in scaled):
        return ProbeResult(problems=("the module was given other shapes when a head was scaled.",))
    before, *after = (torch.cat([x.reshape(-1, site.width) for x in inputs]).double() for inputs in (base, *scaled))
    rounding = max(torch.finfo(dtype).eps for dtype in (base[0].dtype, torch.float32))  # softmax is often float32
    tolerance = 8 * rounding * before.abs().max()
    moved = [((x - before).abs().amax(0) > tolerance).nonzero().flatten().tolist() for x in after]
    if len(scaled) != site.heads:
        if notes := _shared(site, moved):
            return ProbeResult(notes=notes)
        went = (f"head {head} {_went(site, m)}." for head, m in enumerate(moved))
        return ProbeResult(problems=(f"the attention has {len(scaled)} heads, but {says}.", *went))
    wanted = (_with_slot(before, site, head, factor) for head in range(site.heads))
    fits = [bool(((x - w).abs() <= tolerance).all()) for x, w in zip(after, wanted, strict=True)]
    faults = (_fault(site, head, m, fit) for head, (m, fit) in enumerate(zip(moved, fits, strict=True)))
    return ProbeResult(problems=tuple(fault for fault in faults if fault))


def _with_slot(before: Tensor, site: HeadSite, head: int, factor: float) -> Tensor:
    scaled = before.clone()
    scaled[:, head * site.head_dim : (head + 1) * site.head_dim] *= factor
    return scaled


def _fault(site: HeadSite, head: int, moved: list[int], fits: bool) -> str | None:
    if _slots(site, moved) != [head]:
        first = head * site.head_dim
        return f"head {head} {_went(site, moved)}; the spec says slot {head}, {first}-{first + site.head_dim - 1}."
    if not fits:
        return f"head {head} moved slot {head}, but did not scale it: there is a norm or the like in between."
    return None


def _shared(site: HeadSite, moved: list[list[int]]) -> tuple[str, ...]:
    """What slots hold that are moved, as a whole and alone, by equally many heads each; nothing where it is not so."""
    owners = [_slots(site, m) for m in moved]
    if site.heads < 2 or any(len(s) != 1 or len(m) != site.head_dim for s, m in zip(owners, moved, strict=True)):
        return ()
    held = [[head for head, slots in enumerate(owners) if slots == [slot]] for slot in range(site.heads)]
    if len({len(heads) for heads in held}) > 1 or held != sorted(held):
        return ()
    return tuple(
        f"slot {slot} holds the attention heads {_ranges(heads)} together; their place is proved, not the factor."
        for slot, heads in enumerate(held)
    )


def _slots(site: HeadSite, moved: Iterable[int]) -> list[int]:
    return sorted({coordinate // site.head_dim for coordinate in moved})


def _went(site: HeadSite, moved: list[int]) -> str:
    if not moved:
        return "changed nothing that can be seen in this module's input"
    return f"moved the coordinates {_ranges(moved)}: slots {_ranges(_slots(site, moved))}"


def _ranges(numbers: Sequence[int]) -> str:
    """Rising numbers in short: ``0-7, 16-23``."""
    starts = [n for n in numbers if n - 1 not in numbers]
    ends = [n for n in numbers if n + 1 not in numbers]
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in zip(starts, ends, strict=True))
