"""What to change so that a run fits, cheapest first, with the memory that it needs then."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from headedit.errors import HeadEditError
from headedit.training.memory_plan.planner import Plan, Planner
from headedit.training.memory_plan.setup import Setup

_DEVICES = (2, 4, 8)
_SHORTEST = 128
_HOW = {"device_map": "device_map: auto", "fsdp": "FSDP", "tensor_parallel": "tensor parallel"}


@dataclass(frozen=True)
class Change:
    """A change of how a run trains.

    Fields:
        what: the change, in the words of the run's settings.
        plan: the plan of the changed run.
    """

    what: str
    plan: Plan


def advise(planner: Planner, plan: Plan, memory: int) -> list[Change]:
    """Changes of a run that does not safely fit: each alone, and, if none is enough, several together.

    Args:
        planner: of the model.
        plan: of the run.
        memory: bytes of a device.

    Returns:
        The changes that need less memory, by their cost to the run: time first, then precision, devices, and the data
        itself. If no change of time or precision is enough, a last entry joins as many changes as are needed, or all.
    """
    if plan.verdict(memory) == "fits":
        return []
    cheap, dear = (_found(changes, planner, plan, memory) for changes in (_OF_THE_RUN, _OF_WHAT_IT_HAS))
    if any(change.plan.verdict(memory) == "fits" for change in cheap):
        return [*cheap, *dear]
    joined = plan
    words: list[str] = []
    for change in (*_OF_THE_RUN, *_OF_WHAT_IT_HAS):
        found = None if joined.verdict(memory) == "fits" else change(planner, joined, memory)
        if found is not None:
            joined, words = found.plan, [*words, found.what]
    return [*cheap, *dear, *([Change(" + ".join(words), joined)] if len(words) > 1 else [])]


def _found(changes: "Sequence[_Try]", planner: Planner, plan: Plan, memory: int) -> list[Change]:
    return [found for change in changes if (found := change(planner, plan, memory)) is not None]


def _checkpointing(planner: Planner, plan: Plan, memory: int) -> Change | None:
    return _first_that_fits(
        planner, plan, memory, [("gradient checkpointing", replace(plan.setup, checkpointing=True))]
    )


def _flash(planner: Planner, plan: Plan, memory: int) -> Change | None:
    if plan.setup.device == "cpu" or plan.setup.dtype == "float32":  # it computes in half precision, on GPUs
        return None
    return _first_that_fits(planner, plan, memory, [("FlashAttention", replace(plan.setup, attention="flash"))])


def _smaller_batch(planner: Planner, plan: Plan, memory: int) -> Change | None:
    whole = plan.setup.batch_size
    options = [
        (f"batch size {n} with {-(-whole // n)} times the accumulation", replace(plan.setup, batch_size=n))
        for n in _halves(whole, 1)
    ]
    return _first_that_fits(planner, plan, memory, options)


def _four_bits(planner: Planner, plan: Plan, memory: int) -> Change | None:
    return _first_that_fits(planner, plan, memory, [("4-bit weights", replace(plan.setup, quantization="4bit"))])


def _more_devices(planner: Planner, plan: Plan, memory: int) -> Change | None:
    if plan.setup.device == "cpu":  # all its cores share one memory
        return None
    numbers = [n for n in _DEVICES if n > plan.setup.devices]
    how = _HOW[plan.setup.split]
    return _first_that_fits(
        planner, plan, memory, [(f"{n} devices ({how})", replace(plan.setup, devices=n)) for n in numbers]
    )


def _shorter(planner: Planner, plan: Plan, memory: int) -> Change | None:
    lengths = _halves(plan.setup.tokens, _SHORTEST)
    return _first_that_fits(
        planner, plan, memory, [(f"max_length {n}", replace(plan.setup, tokens=n)) for n in lengths]
    )


def _halves(number: int, least: int) -> Iterator[int]:
    while number // 2 >= least:
        number //= 2
        yield number


def _first_that_fits(planner: Planner, plan: Plan, memory: int, options: list[tuple[str, Setup]]) -> Change | None:
    """The first option that fits, or else the last that needs less memory than before."""
    best = None
    for what, setup in options:
        try:
            found = planner.plan(setup)
        except HeadEditError:  # the model has no such option
            continue
        if found.total < (plan if best is None else best.plan).total:
            best = Change(what, found)
        if found.verdict(memory) == "fits":
            break
    return best


_Try = Callable[[Planner, Plan, int], Change | None]
_OF_THE_RUN: tuple[_Try, ...] = (_flash, _smaller_batch, _checkpointing, _four_bits)
_OF_WHAT_IT_HAS: tuple[_Try, ...] = (_more_devices, _shorter)
