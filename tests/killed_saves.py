"""Saves edits in processes that are killed, or that save at the same time, and prints what a reader found, as JSON.

    python killed_saves.py FOLDER KILLS SAVES

Writers of full edits are killed, then writers of hardened ones, ``KILLS`` times each; then two writers save at the same
time, ``SAVES`` times each. One process imports everything once; the writers are its forks.
"""

import json
import os
import random
import signal
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch
from tiny import randomise, tiny_model

import headedit
from headedit.edits.files.storage import read
from headedit.errors import HeadEditError


def fork(work: Callable[[], None]) -> int:
    """The id of a process that does some work and ends."""
    child = os.fork()
    if not child:
        try:
            work()
        finally:
            os._exit(0)
    return child


class Folder:
    """A folder into which two sets of edits are saved in turn.

    Fields:
        found: how often what a reader found was the one, the other, or lost.
        seconds: that a save takes.
    """

    def __init__(self, folder: Path, hardened: bool) -> None:
        self.folder, self.hardened = folder, hardened
        self.edits = [headedit.attach(tiny_model("llama")) for _ in range(2)]
        self.found: Counter[str] = Counter()
        for seed, edits in enumerate(self.edits):
            randomise(edits, seed)
        self.values = []
        began = time.perf_counter()
        for edits in self.edits:
            self.save(edits)
            self.values.append(list(read(folder).parameters()))
        self.seconds = (time.perf_counter() - began) / 2

    def save(self, edits: headedit.HeadEdits) -> None:
        edits.save_pretrained(self.folder, hardened=self.hardened, card=False)

    def save_in_turn(self) -> None:
        while True:
            for edits in self.edits:
                self.save(edits)

    def look(self) -> None:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of a copy of the config that the killed writer did not come to
                found = list(read(self.folder).parameters())
        except HeadEditError as error:
            print(error, file=sys.stderr)
            self.found["lost"] += 1
            return
        same = [all(map(torch.equal, found, values)) for values in self.values]
        self.found["one" if same[0] else "other" if same[1] else "lost"] += 1


def kill_writers(folder: Folder, count: int) -> None:
    """Kills a writer at a random moment, looks, and starts the next."""
    draw = random.Random(0)
    for _ in range(count):
        writer = fork(folder.save_in_turn)
        time.sleep(draw.uniform(0, 4 * folder.seconds))
        os.kill(writer, signal.SIGKILL)
        os.waitpid(writer, 0)
        folder.look()
    folder.save(folder.edits[0])


def write_together(folder: Folder, count: int) -> None:
    """Lets two writers save their edits a number of times each, and looks all the while."""

    def work(edits: headedit.HeadEdits) -> None:
        for _ in range(count):
            folder.save(edits)

    writers = [fork(lambda edits=edits: work(edits)) for edits in folder.edits]
    while writers:
        folder.look()
        writers = [writer for writer in writers if os.waitpid(writer, os.WNOHANG) == (0, 0)]
    folder.look()


def outcome(folder: Folder) -> dict[str, object]:
    """What the reader found, the warnings of a last look, and the files that are left."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        read(folder.folder)
    return {**folder.found, "warnings": len(caught), "files": sorted(os.listdir(folder.folder))}


def main() -> None:
    place, kills, saves = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(1)
    found = {}
    for form in ("full", "hardened"):
        folder = Folder(place / form, form == "hardened")
        kill_writers(folder, kills)
        found[form] = outcome(folder)
    folder = Folder(place / "writers", False)
    write_together(folder, saves)
    print(json.dumps({**found, "writers": outcome(folder)}))


if __name__ == "__main__":
    main()
