"""How long a call computes."""

import time
from collections.abc import Callable


def fastest_of_three(call: Callable[[], object]) -> float:
    """Seconds of computing of the fastest of three calls: whatever else the process does can only add to them."""
    seconds = []
    for _ in range(3):
        started = time.process_time()
        call()
        seconds.append(time.process_time() - started)
    return min(seconds)
