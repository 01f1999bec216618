"""How a command runs in several processes, as torchrun or accelerate start it: the first alone prints and writes."""

import logging
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from headedit.cli.shared import console
from headedit.errors import HeadEditError
from headedit.io.launch import shared
from headedit.io.processes import Processes

_SIGTERM = "stopped, as another process has ended or SIGTERM was sent."


@contextmanager
def in_all_processes() -> Iterator[Processes]:
    """A context for the body of a command that all processes of a launch run together.

    If one fails or is stopped, all end, and the first process says why in one message. Launchers send SIGTERM when a
    process has ended before its time, so it counts as Ctrl-C does.

    Raises:
        SystemExit: in any process but the first, which ends without a word.
    """
    quiet, logger = console.quiet, logging.getLogger("headedit")
    level, on_sigterm = logger.level, signal.getsignal(signal.SIGTERM)
    processes = Processes()
    try:
        with shared() as processes:
            if processes.size > 1:
                signal.signal(signal.SIGTERM, _stop)
            if not processes.first:
                console.quiet = True
                logger.setLevel(logging.CRITICAL)
            yield processes
    except (Exception, KeyboardInterrupt) as error:
        if processes.size == 1:
            raise
        if processes.first:
            on_sigterm = signal.SIG_IGN  # what is sent because others ended must not come before the message
            raise
        processes.wait_for_first()
        raise SystemExit(_exit_code(error)) from None
    finally:
        console.quiet = quiet
        logger.setLevel(level)
        if processes.size > 1:
            signal.signal(signal.SIGTERM, on_sigterm)


def _stop(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt(_SIGTERM)


def _exit_code(error: BaseException) -> int:
    if isinstance(error, KeyboardInterrupt):
        return 130
    return 2 if isinstance(error, HeadEditError) else 1
