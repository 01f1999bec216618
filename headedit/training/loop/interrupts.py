"""Ctrl-C and SIGTERM during training, handled at the end of a step, so that the checkpoint is complete."""

import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import FrameType
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopOnSignal(TrainerCallback):  # type: ignore[misc]
    """Ends training after the step in which a signal arrived, with a checkpoint.

    Fields:
        requested: whether a signal has arrived.
    """

    def __init__(self) -> None:
        self.requested = False
        self._stopped = False

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Stops and saves if a signal has arrived; after the last step of an epoch, validation comes first."""
        if self.requested and state.epoch != round(state.epoch or 0):
            self._stopped = control.should_save = control.should_training_stop = True

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Stops and saves at the end of an epoch; if stopped inside one, skips what belongs to its end."""
        if self._stopped:
            control.should_log = control.should_evaluate = control.should_save = False
        elif self.requested:
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

    def _record(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
