"""Ctrl-C and a scheduler's notice, taken at the end of a step, so that what is saved is whole."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopWhenAsked(TrainerCallback):  # type: ignore[misc]
    """Ends training after the step in which a signal came, with a checkpoint.

    Fields:
        asked: whether one came.
    """

    def __init__(self) -> None:
        self.asked = False
        self._stopped = False

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Stops and saves, if a signal came; but after the last step of an epoch its validation comes first."""
        if self.asked and state.epoch != round(state.epoch or 0):
            self._stopped = control.should_save = control.should_training_stop = True

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Stops and saves at a whole epoch; in the middle of one nothing is due that comes at its end."""
        if self._stopped:
            control.should_log = control.should_evaluate = control.should_save = False
        elif self.asked:
            control.should_save = control.should_training_stop = True

    @contextmanager
    def listening(self) -> Iterator[None]:
        """A context in which SIGINT and SIGTERM are noted; the second one stops at once, as it does outside.

        Only the main thread can listen; elsewhere this does nothing.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.getsignal(number) for number in _SIGNALS}

        def note(number: int, frame: FrameType | None) -> None:
            if self.asked:
                raise KeyboardInterrupt
            self.asked = True

        for number in _SIGNALS:
            signal.signal(number, note)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
