"""Times of several variants that run in turn, so that other load on the machine affects all of them alike."""

import statistics
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

import torch

from headedit.bench.cost.memory import memory_kept
from headedit.io.bars import tqdm

WARM_UP = 3
"""Rounds that are not counted."""

NTH = 5
"""Variants that need less exact times run in every fifth round."""


@dataclass(frozen=True)
class Timing:
    """Times of one variant, and of the variant it is compared with in the same rounds.

    Fields:
        milliseconds: one per round that it ran in.
        reference: those of the other variant in the same rounds.
    """

    milliseconds: list[float]
    reference: list[float]

    @property
    def median(self) -> float:
        """The median, in milliseconds."""
        return statistics.median(self.milliseconds)

    @property
    def ratio(self) -> float:
        """Ratio of the two medians."""
        return self.median / statistics.median(self.reference)

    @property
    def quartiles(self) -> tuple[float, float]:
        """The first and third quartile of the ratios within a round."""
        ratios = [a / b for a, b in zip(self.milliseconds, self.reference, strict=True)]
        if len(ratios) < 2:
            return ratios[0], ratios[0]
        low, _, high = statistics.quantiles(ratios, n=4, method="inclusive")
        return low, high


def alternate(
    variants: Mapping[str, Callable[[], Callable[[], object]]],
    repeats: int,
    device: torch.device,
    *,
    every_nth: Collection[str] = (),
    what: str = "",
    progress: bool = False,
) -> dict[str, Timing]:
    """Runs all variants once per round; each round starts with the next variant.

    On a CPU, freed memory is kept for the next pass (see ``memory_kept``).

    Args:
        variants: by name; each prepares a run, which is not timed, and returns it. The first is the reference.
        repeats: timed rounds, after three that are not counted.
        device: where they run; a GPU is timed by its own events.
        every_nth: names of those that run only in every fifth round, after one round that is not counted.
        what: the text of the progress bar.
        progress: show a bar.
    """
    times: dict[str, dict[int, float]] = {name: {} for name in variants}
    begun: Counter[int] = Counter()
    with memory_kept(device):
        for i in tqdm(range(-WARM_UP, repeats), desc=what, disable=not progress, leave=False):
            all_run = i == -1 or (i >= 0 and i % NTH == 0)
            names = [name for name in variants if all_run or name not in every_nth]
            first = begun[len(names)] % max(1, len(names))
            begun[len(names)] += 1
            for name in names[first:] + names[:first]:
                taken = _timed(variants[name](), device)
                if i >= 0:
                    times[name][i] = taken
    reference = times[next(iter(variants))]
    return {name: Timing(list(of.values()), [reference[i] for i in of]) for name, of in times.items()}


def as_is(run: Callable[[], object]) -> Callable[[], Callable[[], object]]:
    """A variant that needs no preparation."""
    return lambda: run


def _timed(run: Callable[[], object], device: torch.device) -> float:
    if device.type != "cuda":
        started = time.perf_counter()
        run()
        return 1000 * (time.perf_counter() - started)
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    torch.cuda.synchronize(device)
    begin.record(torch.cuda.current_stream(device))
    run()
    end.record(torch.cuda.current_stream(device))
    torch.cuda.synchronize(device)
    return float(begin.elapsed_time(end))
