"""Ctrl-C and SIGTERM during training, handled at the end of a step, so that the checkpoint is complete."""

import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import FrameType
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from headedit.training.processes import agree, agrees_cheaply

_STEPS = 8
"""Steps after which processes on accelerators look again whether a signal has reached one of them."""
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopOnSignal(TrainerCallback):  # type: ignore[misc]
    """Ends training after the step in which a signal arrived, with a checkpoint.

    Of several processes, all end after the same step, whichever of them a signal reached first.

    Fields:
        requested: whether a signal has arrived, as all processes know.
    """

    def __init__(self) -> None:
        self.requested = False
        self._received = False
        self._stopped = False

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Stops and saves if a signal has arrived; after the last step of an epoch, validation comes first."""
        if agrees_cheaply() or state.global_step % _STEPS == 0:
            self._agree()
        if self.requested and state.epoch != round(state.epoch or 0):
            self._stopped = control.should_save = control.should_training_stop = True

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Stops and saves at the end of an epoch; if stopped inside one, skips what belongs to its end."""
        if self._stopped:
            control.should_log = control.should_evaluate = control.should_save = False
            return
        self._agree()
        if self.requested:
            control.should_save = control.should_training_stop = True

    @contextmanager
    def handling_signals(self) -> Iterator[None]:
        """A context in which the first SIGINT or SIGTERM is recorded and the second raises KeyboardInterrupt.

        Only the main thread can handle signals; in any other this does nothing.
        """
        with ExitStack() as stack:
            if threading.current_thread() is threading.main_thread():
                for number in _SIGNALS:
                    stack.callback(signal.signal, number, signal.signal(number, self._record))
            yield
        self._agree()

    def _agree(self) -> None:
        self.requested = agree(self.requested or self._received)

    def _record(self, number: int, frame: FrameType | None) -> None:
        if self._received:
            raise KeyboardInterrupt
        self._received = True
