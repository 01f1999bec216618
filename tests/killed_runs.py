"""Runs of ``headedit train`` in forks of this process, which die by SIGKILL at a chosen or a random moment."""

import gc
import mmap
import os
import random
import signal
import time
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import torch
from transformers import TrainerState

from headedit import HeadEditTrainer
from headedit.cli.main import main
from headedit.training.recipes.journal import Journal
from headedit.training.recipes.session import Session

MOMENTS = (
    ("training step", HeadEditTrainer, "training_step"),
    ("checkpoint", HeadEditTrainer, "_save_checkpoint"),
    ("validation", HeadEditTrainer, "prediction_step"),
    ("validation", Session, "example_losses"),  # of recipes that choose among what they have trained
    ("end of a stage", Journal, "finish"),
    ("held-out figures", Session, "held_out_figures"),
)
"""What a run does, by name, and the method that does it. Apart from these it is in one of ``REST``."""
REST = {None: "start", "end of a stage": "between stages", "held-out figures": "final save"}
"""What a run is in after one of the moments, or at its begin."""
AT_RANDOM = None
"""In place of a moment: at a random time."""
ORDER = (
    *("checkpoint", AT_RANDOM, "training step", "final save", AT_RANDOM, "validation", "end of a stage", AT_RANDOM),
    *("held-out figures", "between stages", AT_RANDOM, "start"),
)
"""The moments in which one run after another is killed."""
FILE_OPERATIONS = ("replace", "fsync", "unlink", "mkdir", "rmdir")


class Watched:
    """Says in which moment a process is, and ends it by SIGKILL at one of the events of a moment.

    Events are the begin and the end of every moment and of every file operation in it.

    Args:
        name: memory that other processes read, where the name of the moment is written.
        moment: the moment in which the process dies; None for one that does not end itself.
        number: at which of its events, from 1.
    """

    def __init__(self, name, moment=AT_RANDOM, number=1):
        self.name, self.moment, self.left = name, moment, number
        self.now = [REST[None]]
        self.events = Counter()

    def event(self):
        moment = self.now[-1]
        self.name[:] = moment.encode().ljust(len(self.name))
        self.events[moment] += 1
        if moment == self.moment:
            self.left -= 1
            if not self.left:
                os.kill(os.getpid(), signal.SIGKILL)

    def counted(self, call):
        def wrapped(*args, **kwargs):
            self.event()
            found = call(*args, **kwargs)
            self.event()
            return found

        return wrapped

    def torn(self, call):
        """A write of a file in one go, at the end of which half of it may be on disk."""

        def wrapped(content, file, *args, **kwargs):
            call(content, file, *args, **kwargs)
            if self.now[-1] == self.moment and self.left == 1:
                os.truncate(file, os.path.getsize(file) // 2)
            self.event()

        return wrapped

    def entered(self, moment, call):
        def wrapped(*args, **kwargs):
            self.now.append(moment)
            self.event()
            found = call(*args, **kwargs)
            self.event()
            self.now.pop()
            self.now[0] = REST.get(moment, self.now[0])
            self.event()
            return found

        return wrapped

    @contextmanager
    def watching(self):
        """A context in which all moments and file operations are seen."""
        saved = (TrainerState.save_to_json, torch.save)
        places = [*(place for _, *place in MOMENTS), *((os, name) for name in FILE_OPERATIONS)]
        before = [(owner, name, getattr(owner, name)) for owner, name in places]
        for moment, owner, name in MOMENTS:
            setattr(owner, name, self.entered(moment, getattr(owner, name)))
        for name in FILE_OPERATIONS:
            setattr(os, name, self.counted(getattr(os, name)))
        TrainerState.save_to_json, torch.save = self.torn(saved[0]), self.torn(saved[1])
        try:
            yield
        finally:
            TrainerState.save_to_json, torch.save = saved
            for owner, name, value in before:
                setattr(owner, name, value)


def command(words):
    """Runs a command in this process; its exit code."""
    try:
        main([str(word) for word in words])
    except SystemExit as end:
        return end.code
    return 0


def fork(words, watched, log):
    """The id of a process that runs a command and writes what it prints into a file."""
    child = os.fork()
    if child:
        return child
    code = 1
    gc.freeze()
    try:
        with open(log, "wb") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        with watched.watching():
            code = command(words)
    finally:
        os._exit(code)


class KilledRuns:
    """The runs of a config, of which one was whole; the others are killed.

    Fields:
        kills: how many runs died in each moment.
        finished: how many runs that had been killed ended.
    """

    def __init__(self, config: Path, folder: Path, seed: int = 0):
        self.config, self.folder, self.draw = config, folder, random.Random(seed)
        self.whole, self.kills, self.finished = folder / "whole", Counter(), 0
        self.name = mmap.mmap(-1, 32)
        watched, began = Watched(self.name), time.perf_counter()
        with watched.watching():
            assert command(["train", config, "--output", self.whole]) == 0
        self.seconds, self.events = time.perf_counter() - began, watched.events

    def killed(self, output: Path, moment: str | None, *, resume: bool) -> bool:
        """Runs in a process that dies at a random event of a moment, or at a random time; whether it died."""
        number = self.draw.randint(1, self.events[moment]) if moment else 1
        words = ["train", self.config, "--output", output, *(["--resume"] if resume else [])]
        log = self.folder / f"{output.name}.log"
        child = fork(words, Watched(self.name, moment, number), log)
        if moment is AT_RANDOM:
            time.sleep(self.draw.uniform(0, self.seconds))
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if os.WIFSIGNALED(status):
            self.kills[self.name[:].decode().strip()] += 1
            return True
        assert os.waitstatus_to_exitcode(status) == 0, log.read_text()
        return False

    def finish(self, output: Path) -> None:
        """Resumes a run until it ends."""
        log = self.folder / f"{output.name}.log"
        _, status = os.waitpid(fork(["train", self.config, "--output", output, "--resume"], Watched(self.name), log), 0)
        assert os.waitstatus_to_exitcode(status) == 0, log.read_text()
        self.finished += 1
