"""Work that several processes do together.

Processes talk through the key-value store by which torch makes process groups, so they need neither a group nor a
backend, and what fails in one is reported to the others instead of leaving them to wait.
"""

import logging
import pickle
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from typing import Any, NoReturn, TypeVar

from headedit.errors import HeadEditError

logger = logging.getLogger(__name__)

T = TypeVar("T")
_LATE, _TOO_LATE, _LEAVING = 60.0, 1800.0, 60.0  # seconds
_PAUSES = (0.002, 0.1)  # seconds between two looks into the store: the first, and the longest
_FAILED, _PRESENT, _LEFT = "failed", "present", "left"
_ALONE = "Call it in every process; where one alone is to do it, say all_processes=False."


@dataclass(frozen=True)
class _Failure:
    """How a process ended before its work was done.

    Fields:
        rank: of the process.
        message: of its error.
        kind: ``error`` for a ``HeadEditError``, ``stopped`` as by Ctrl-C, ``fault`` for any other exception.
        trace: where, as Python prints it.
    """

    rank: int
    message: str
    kind: str
    trace: str


class OtherProcess(Exception):
    """What Python would have printed of the exception of another process."""


class Processes:
    """All processes that do a piece of work together, as one of them sees them.

    All call the same methods in the same order. A method that waits raises what another process has failed with.

    Fields:
        rank: number of this process.
        size: number of processes.
    """

    def __init__(self, rank: int = 0, size: int = 1, store: Any = None) -> None:
        self.rank, self.size, self._store = rank, size, store
        self._calls = count()
        if self._store is not None and self.first:
            self._set(_PRESENT, None)

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes and prints."""
        return self.rank == 0

    def check(self) -> None:
        """Raises what another process has failed with, if one has.

        Raises:
            HeadEditError: another process has failed.
            KeyboardInterrupt: another process was stopped.
        """
        if self._store is None or not self._has(_FAILED):
            return
        self._raise(self._get(_FAILED))

    def from_first(self, make: Callable[[], T]) -> T:
        """What the first process makes, in all processes."""
        if self.size == 1:
            return make()
        key = f"made {next(self._calls)}"
        if self.first:
            made = make()
            self._set(key, made)
            return made
        self._wait(key)
        found: T = self._get(key)
        return found

    def gather(self, value: T, doing: str) -> list[T]:
        """In the first process the values of all in their order; in any other its own alone.

        Args:
            value: of this process.
            doing: what they meet for, as the message says where one does not come.

        Raises:
            HeadEditError: a process has not come in half an hour.
        """
        key = f"met {next(self._calls)} "
        if not self.first:
            self._set(f"{key}{self.rank}", value)
            return [value]
        others = [f"{key}{rank}" for rank in range(1, self.size)]
        for other in others:
            self._wait(other, doing=doing)
        return [value, *map(self._taken, others)]

    def in_order(self, parts: Iterator[T]) -> Iterator[T]:
        """Parts that the processes make in turns, in their order.

        Args:
            parts: those of this process: of n processes, the k-th makes part k, k + n, …

        Returns:
            In the first process all parts, each as soon as it and those before it are there; in any other none.
        """
        if self.size == 1:
            yield from parts
            return
        key, numbers = f"part {next(self._calls)} ", count(self.rank, self.size)
        end = f"{key}end "
        own: dict[int, T] = {}
        at = 0
        for number, part in zip(numbers, parts, strict=False):
            self.check()
            if not self.first:
                self._set(f"{key}{number}", part)
                continue
            own[number] = part
            while at in own or (at % self.size and self._has(f"{key}{at}")):
                yield own.pop(at) if at in own else self._taken(f"{key}{at}")
                at += 1
        if not self.first:
            self._set(f"{end}{self.rank}", None)
            return
        while at % self.size:  # of its own parts, the first process has none left
            self._wait(f"{key}{at}", f"{end}{at % self.size}")
            if not self._has(f"{key}{at}"):
                return
            yield self._taken(f"{key}{at}")
            at += 1
            if at in own:
                yield own.pop(at)
                at += 1

    def share_out(self, jobs: int, do: Callable[[int], T]) -> Iterator[dict[int, T]]:
        """Does jobs by their number, each in the process that is free first.

        Returns:
            In the first process the results so far, by job, whenever there are more; in any other none.
        """
        done: dict[int, T] = {}
        call = next(self._calls)
        key = f"job {call} "
        for job in self._claimed(f"jobs {call}", jobs):
            self.check()
            found = do(job)
            if not self.first:
                self._set(f"{key}{job}", found)
                continue
            done[job] = found
            yield self._with_those_of_others(done, key, jobs)
        while self.first and len(done) < jobs:
            self._wait(*(f"{key}{job}" for job in range(jobs) if job not in done))
            yield self._with_those_of_others(done, key, jobs)

    def fail(self, error: BaseException) -> None:
        """Tells the others that this process has failed or was stopped, unless one has said so before.

        Raises:
            HeadEditError: this process was stopped because another had failed.
        """
        known, stopped = isinstance(error, HeadEditError), isinstance(error, KeyboardInterrupt)
        failure = _Failure(
            rank=self.rank,
            message=str(error) if known or stopped else f"{type(error).__name__}: {error}",
            kind="error" if known else "stopped" if stopped else "fault",
            trace="".join(traceback.format_exception(error)),
        )
        try:
            first = pickle.loads(self._store.compare_set(_FAILED, "", pickle.dumps(failure)))
        except RuntimeError:  # the process that holds the store has ended
            return
        if stopped and first.kind != "stopped":
            self._raise(first)

    def leave(self) -> None:
        """Ends the work: the first process, which may hold the store, waits until the others need it no longer."""
        until = time.monotonic() + _LEAVING
        try:
            left = self._store.add(_LEFT, 1)
            while self.first and left < self.size and time.monotonic() < until:
                time.sleep(_PAUSES[0])
                left = self._store.add(_LEFT, 0)
        except RuntimeError:  # the first has ended
            return

    def wait_for_first(self) -> None:
        """Waits until the first process is there to say what has failed, a minute at most."""
        until = time.monotonic() + _LATE
        try:
            while not self._store.check([_PRESENT]) and time.monotonic() < until:
                time.sleep(_PAUSES[1])
        except RuntimeError:  # it has ended
            return

    def _raise(self, failure: _Failure) -> NoReturn:
        if failure.kind == "stopped":
            raise KeyboardInterrupt(failure.message)
        if failure.kind == "error":
            raise HeadEditError(failure.message)
        cause = OtherProcess(f"\n{failure.trace}")
        raise HeadEditError(f"Process {failure.rank} of {self.size}: {failure.message}") from cause

    def _claimed(self, key: str, jobs: int) -> Iterator[int]:
        """Jobs that no other process does."""
        if self._store is None:
            yield from range(jobs)
            return
        while (job := self._store.add(key, 1) - 1) < jobs:
            yield job

    def _with_those_of_others(self, done: dict[int, T], key: str, jobs: int) -> dict[int, T]:
        if self._store is not None:
            done |= {job: self._taken(f"{key}{job}") for job in range(jobs) if self._has(f"{key}{job}")}
        return dict(sorted(done.items()))

    def _wait(self, *keys: str, doing: str | None = None) -> None:
        """Waits until one of some values is there; for a meeting, not forever."""
        begun, (pause, longest) = time.monotonic(), _PAUSES
        told = False
        while not any(map(self._has, keys)):
            self.check()
            time.sleep(pause)
            pause = min(1.5 * pause, longest)
            waited = time.monotonic() - begun
            if doing is not None and waited > _LATE and not told:
                told = True
                logger.warning("%s waits for the other processes, %d in all. %s", doing, self.size, _ALONE)
            if doing is not None and waited > _TOO_LATE:
                raise HeadEditError(
                    f"{doing}: a process of {self.size} has not come in {waited / 60:.0f} minutes. {_ALONE}"
                )

    def _has(self, key: str) -> bool:
        try:
            return bool(self._store.check([key]))
        except RuntimeError as error:
            raise HeadEditError(
                f"Process {self.rank} of {self.size} has lost the others: the process that holds their common "
                "store has ended."
            ) from error

    def _get(self, key: str) -> Any:
        return pickle.loads(self._store.get(key))

    def _taken(self, key: str) -> Any:
        """A value that is read once."""
        value = self._get(key)
        self._store.delete_key(key)
        return value

    def _set(self, key: str, value: object) -> None:
        self._store.set(key, pickle.dumps(value))
