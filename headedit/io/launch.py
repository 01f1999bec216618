"""The processes that torchrun, accelerate or a user's own process group has started, for work that they share."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import count
from typing import Any

from headedit.errors import HeadEditError
from headedit.io.processes import Processes

_ADDRESS = {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}
_OF_LAUNCH = ("LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_", "ROLE_", "TORCHELASTIC_")
_GPUS = "CUDA_VISIBLE_DEVICES"
_current: ContextVar[Processes | None] = ContextVar("processes", default=None)
_store: Any = None  # that of the launch: it has to outlive every piece of work
_entered = count()


@contextmanager
def shared(all_processes: bool = True) -> Iterator[Processes]:
    """The processes of a piece of work: all that were started together, or within such a context the same again.

    What fails in one of them, or stops it, ends the work in all.

    Args:
        all_processes: False for this process alone.
    """
    current = _current.get()
    if not all_processes or current is not None:
        yield Processes() if current is None or not all_processes else current
        return
    found = _started()
    if found.size == 1:
        yield found
        return
    token = _current.set(found)
    try:
        yield found
        found.leave()
    except (Exception, KeyboardInterrupt) as error:
        found.fail(error)
        raise
    finally:
        _current.reset(token)


@contextmanager
def as_if_alone() -> Iterator[None]:
    """A context in which what a process starts is its own: no other process is seen, and one GPU alone.

    Raises:
        HeadEditError: the processes are one process group already.
    """
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized():
        raise HeadEditError("The processes are one process group already, so none can work alone.")
    ours = [name for name in os.environ if name in _ADDRESS or name.startswith(_OF_LAUNCH)]
    before = {name: os.environ.get(name) for name in (*ours, _GPUS)}
    gpu = _own_gpu()
    try:
        for name in ours:
            del os.environ[name]
        if gpu is not None:
            os.environ[_GPUS] = gpu
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _own_gpu() -> str | None:
    """Which GPU is this process's, as ``CUDA_VISIBLE_DEVICES`` names it; None where there is none."""
    import torch

    number = torch.cuda.device_count()
    if not number:
        return None
    listed = os.environ.get(_GPUS)
    names = [str(i) for i in range(number)] if listed is None else listed.split(",")[:number]
    return names[int(os.environ.get("LOCAL_RANK", "0")) % len(names)]


def _started() -> Processes:
    """The processes of a process group, or those that a launcher has started."""
    global _store
    import torch.distributed as dist

    if not dist.is_available():
        return Processes()
    from torch.distributed.distributed_c10d import PrefixStore, _get_default_store
    from torch.distributed.rendezvous import rendezvous

    grouped = dist.is_initialized()
    if grouped:
        rank, size = dist.get_rank(), dist.get_world_size()
    elif os.environ.keys() >= _ADDRESS:
        rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    else:
        return Processes()
    if size == 1:
        return Processes()
    if _store is None:
        _store = _get_default_store() if grouped else next(rendezvous("env://"))[0]
    return Processes(rank, size, PrefixStore(f"headedit {next(_entered)}", _store))
