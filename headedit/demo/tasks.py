"""Six small text tasks on lists of letters: what the embedded model knows, and what the demo teaches it.

A line reads ``reverse : a b c d = d c b a``. The word before the colon is the cue that names the task;
``?`` in its place leaves the model to guess which of the six is meant.
"""

import random
import string
from collections.abc import Callable

LETTERS = string.ascii_lowercase
LENGTHS = range(4, 9)
NO_CUE = "?"


def _copy(letters: str) -> str:
    return letters


def _reverse(letters: str) -> str:
    return letters[::-1]


def _sort(letters: str) -> str:
    return "".join(sorted(letters))


def _next(letters: str) -> str:
    return "".join(LETTERS[(LETTERS.index(c) + 1) % len(LETTERS)] for c in letters)


def _first(letters: str) -> str:
    return letters[0] * len(letters)


def _swap(letters: str) -> str:
    pairs = [letters[i : i + 2] for i in range(0, len(letters), 2)]
    return "".join(pair[::-1] for pair in pairs)


TASKS: dict[str, Callable[[str], str]] = {
    "copy": _copy,
    "reverse": _reverse,
    "sort": _sort,
    "next": _next,
    "first": _first,
    "swap": _swap,
}


def record(task: str, letters: str, *, cued: bool) -> dict[str, str]:
    """One example as a prompt and the expected response, both as text."""
    cue = task if cued else NO_CUE
    return {"prompt": f"{cue} : {' '.join(letters)} =", "response": " " + " ".join(TASKS[task](letters))}


def random_letters(rng: random.Random) -> str:
    """A list of 4 to 8 letters, lengths and letters uniform."""
    return "".join(rng.choices(LETTERS, k=rng.choice(LENGTHS)))


def records(
    task: str, count: int, *, cued: bool, seed: int, exclude: frozenset[str] = frozenset()
) -> list[dict[str, str]]:
    """``count`` examples of a task with distinct prompts, none of them in ``exclude``."""
    rng = random.Random(seed)
    found: dict[str, dict[str, str]] = {}
    while len(found) < count:
        example = record(task, random_letters(rng), cued=cued)
        if example["prompt"] not in exclude:
            found[example["prompt"]] = example
    return list(found.values())
