"""Work that processes share: parts in their order, every job once, and one failure that ends the work in all."""

import random
import threading
import time

import pytest
from torch.distributed import HashStore, PrefixStore

from headedit import HeadEditError
from headedit.io.processes import Processes


def together(size, work):
    """Runs ``work(processes)`` as each of several processes, in threads; the result or the error of each."""
    store, found = PrefixStore("work", HashStore()), [None] * size

    def one(rank):
        processes = Processes(rank, size, store)
        try:
            found[rank] = work(processes)
        except (Exception, KeyboardInterrupt) as error:
            found[rank] = error
            try:
                processes.fail(error)
            except HeadEditError as other:
                found[rank] = other

    threads = [threading.Thread(target=one, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
        assert not thread.is_alive()
    return found


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("parts", [0, 1, 2, 3, 7])
def test_parts_that_are_made_in_turns_come_in_their_order_in_the_first_process(parts, size):
    def made(rank):
        for number in range(rank, parts, size):
            time.sleep(random.random() / 100)
            yield f"part {number}"

    found = together(size, lambda processes: list(processes.in_order(made(processes.rank))))
    assert found == [[f"part {number}" for number in range(parts)], *[[]] * (size - 1)]


@pytest.mark.parametrize("jobs", [0, 1, 6])
def test_every_job_is_done_once_and_the_first_process_has_all_results(jobs):
    done = []

    def do(job):
        time.sleep(random.random() / 100)
        done.append(job)
        return job * job

    found = together(3, lambda processes: list(processes.share_out(jobs, do)))
    assert sorted(done) == list(range(jobs))
    assert found[1:] == [[], []]
    assert (found[0][-1] if jobs else {}) == {job: job * job for job in range(jobs)}
    sizes = [len(results) for results in found[0]]
    assert sizes == sorted(set(sizes))


def test_what_the_first_process_makes_is_the_same_in_all():
    made = []

    def work(processes):
        met = processes.gather(processes.rank, "the test")
        return met, processes.from_first(lambda: made.append(processes.rank) or {"by": processes.rank})

    assert together(3, work) == [([0, 1, 2], {"by": 0}), ([1], {"by": 0}), ([2], {"by": 0})]
    assert made == [0]


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (HeadEditError("row 7 is empty"), (HeadEditError, "row 7 is empty")),
        (ValueError("no such kernel"), (HeadEditError, "Process 1 of 3: ValueError: no such kernel")),
        (KeyboardInterrupt("stopped here"), (KeyboardInterrupt, "stopped here")),
    ],
)
def test_a_failure_in_one_process_ends_the_wait_of_the_others(error, told):
    def work(processes):
        if processes.rank == 1:
            raise error
        processes.gather(None, "the test")
        return processes.from_first(lambda: None)

    first, failed, third = together(3, work)
    assert failed is error
    assert (type(first), str(first)) == (type(third), str(third)) == told
    if isinstance(error, ValueError):
        assert "raise error\nValueError: no such kernel" in str(first.__cause__)


def test_a_process_that_was_stopped_because_another_had_failed_says_what_failed():
    failed = threading.Event()

    def work(processes):
        if processes.rank == 1:
            failed.set()
            raise HeadEditError("row 7 is empty")
        failed.wait()
        while not processes._has("failed"):
            time.sleep(0.001)
        raise KeyboardInterrupt("SIGTERM")  # as a launcher sends it

    first, _ = together(2, work)
    assert (type(first), str(first)) == (HeadEditError, "row 7 is empty")


def test_one_process_does_everything_itself():
    alone = Processes()
    assert list(alone.in_order(iter("abc"))) == ["a", "b", "c"]
    assert list(alone.share_out(2, str)) == [{0: "0"}, {0: "0", 1: "1"}]
    assert (alone.gather(5, "the test"), alone.from_first(lambda: 6)) == ([5], 6)
    alone.check()
