"""Times of several variants that run in turn, so that what else the machine does falls on all of them alike."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from tqdm.auto import tqdm

WARM_UP = 3


@dataclass(frozen=True)
class Timing:
    """Times of one variant, and those of the variant it is compared with, measured in the same rounds.

    Fields:
        milliseconds: one a round.
        reference: the same of the variant that is compared with.
    """

    milliseconds: list[float]
    reference: list[float]

    @property
    def median(self) -> float:
        """In milliseconds."""
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
    what: str = "",
    progress: bool = False,
) -> dict[str, Timing]:
    """Runs all variants once a round, each round beginning with the next of them.

    Args:
        variants: by name; each makes ready, untimed, and returns what is timed. The first is the reference.
        repeats: timed rounds, after three that are not counted.
        device: where they run; a GPU is timed by its own events.
        what: said at the progress bar.
        progress: show a bar.
    """
    times: dict[str, list[float]] = {name: [] for name in variants}
    names = list(variants)
    for i in tqdm(range(WARM_UP + repeats), desc=what, disable=not progress, leave=False):
        first = i % len(names)
        for name in names[first:] + names[:first]:
            taken = _timed(variants[name](), device)
            if i >= WARM_UP:
                times[name].append(taken)
    return {name: Timing(values, times[names[0]]) for name, values in times.items()}


def as_is(run: Callable[[], object]) -> Callable[[], Callable[[], object]]:
    """The variant of something that needs not be made ready."""
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
