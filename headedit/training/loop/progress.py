"""The progress bar of a run: loss, validation loss and open gates next to the steps."""

from typing import Any

from transformers import TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ProgressCallback

from headedit.io.bars import tqdm


class EditProgress(ProgressCallback):  # type: ignore[misc]
    """transformers' progress bar, with loss and open gates next to it instead of one line per log.

    It shows in a terminal and in a notebook, not where the output is a file or a pipe.

    Args:
        stage: name of the stage, which the bar begins with; None for "training".
        total: optimiser steps of the whole run, which the bar then shows, with the time that is left; None for those of
            the stage.
        done: steps of the run that were taken before the stage.
    """

    def __init__(self, stage: str | None = None, *, total: int | None = None, done: int = 0) -> None:
        super().__init__()
        self._stage, self._total, self._done = stage, total, done

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Opens the bar."""
        if state.is_world_process_zero:
            end = self._done + state.max_steps
            total = max(end, self._total or 0)  # there can be more stages than were planned
            self.training_bar = tqdm(
                total=total, initial=self._done, desc=self._stage or "training", leave=end == total, dynamic_ncols=True
            )
        self.current_step = 0

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Shows the latest loss, validation loss and number of open gates."""
        if state.is_world_process_zero and self.training_bar is not None and logs is not None:
            shown = {k: f"{logs[k]:.3g}" for k in ("loss", "open_offset", "open_scale", "eval_loss") if k in logs}
            self._shown = {**getattr(self, "_shown", {}), **shown}
            self.training_bar.set_postfix(self._shown, refresh=False)

    def on_prediction_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        eval_dataloader: Any = None,
        **kwargs: Any,
    ) -> None:
        """Shows a second bar while a validation set takes longer than five seconds."""
        if state.is_world_process_zero and eval_dataloader is not None:
            bar = getattr(self, "prediction_bar", None)
            if bar is None:
                total = len(eval_dataloader)
                bar = tqdm(total=total, desc="validating", leave=False, delay=5, dynamic_ncols=True)
                self.prediction_bar = bar
            bar.update(1)
