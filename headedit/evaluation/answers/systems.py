"""The predictions of a model with its edits and with them switched off, made by one process or by several together."""

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from headedit.edits.handle import HeadEdits
from headedit.errors import HeadEditError
from headedit.evaluation.answers.answers import answers
from headedit.evaluation.answers.predictions import BASE, EDITED, Prediction, append, resume
from headedit.evaluation.tasks.examples import Example
from headedit.evaluation.tasks.task import Task
from headedit.hf.sharding import is_sharded
from headedit.io.processes import Processes


def settings_of_all(
    processes: Processes, model: nn.Module, settings: dict[str, Any], digests: dict[str, str]
) -> dict[str, Any]:
    """What the processes evaluate; they meet for it.

    Args:
        processes: all of them.
        model: the model. Of one that is spread over the processes, each sees a part.
        settings: what this process evaluates, the digests included.
        digests: the keys of the settings that are digests, and what each is of.

    Raises:
        HeadEditError: processes evaluate different things.
    """
    parts = digests if _is_spread(model) else {}
    for rank, found in enumerate(processes.gather(settings, "headedit.evaluate")):
        differing = [key for key, value in settings.items() if found[key] != value and key not in parts]
        if differing:
            names = " and ".join(digests.get(key, key) for key in differing)
            raise HeadEditError(
                f"Processes 0 and {rank} evaluate different things: other {names}. Give all of them the same, or "
                "evaluate in one alone with all_processes=False."
            )
    return processes.from_first(lambda: settings)


def predictions(
    processes: Processes,
    model: nn.Module,
    tokenizer: Any,
    task: Task,
    examples: Sequence[Example],
    edits: HeadEdits | None,
    *,
    file: Path | None,
    settings: dict[str, Any],
    digests: dict[str, str],
    max_new_tokens: int,
    batch_size: int,
    progress: bool,
) -> dict[str, list[Prediction]]:
    """In the first process the predictions of each system, by its name; in any other none.

    Args:
        processes: which share the batches out; all run all of them where the model is spread over the processes.
        model: a causal LM.
        tokenizer: its tokenizer.
        task: says how answers are found.
        examples: of the task.
        edits: the edits, for the systems with them and without; None for the model as it is.
        file: keeps predictions as they are made; those that it holds are not made again. None for no file.
        settings: what is evaluated.
        digests: as in ``settings_of_all``.
        max_new_tokens: longest answer, in tokens.
        batch_size: examples per batch.
        progress: show bars.

    Raises:
        HeadEditError: an example does not fit the model's context, a batch does not fit the memory, or another process
            has failed.
    """
    done = processes.from_first(lambda: [] if file is None else resume(file, settings, digests))
    sharing = Processes() if _is_spread(model) else processes
    found: dict[str, list[Prediction]] = {}
    for system in ["model"] if edits is None else [EDITED, BASE]:
        by_row = {prediction.row: prediction for prediction in done if prediction.system == system}
        missing = [(row, example) for row, example in enumerate(examples) if row not in by_row]
        coming = answers(
            model,
            tokenizer,
            task,
            missing,
            system=system,
            max_new_tokens=max_new_tokens,
            batch_size=batch_size,
            progress=progress and processes.first,
            share=(sharing.rank, sharing.size),
        )
        with _system(edits, system, missing), contextlib.closing(coming):
            for batch in sharing.in_order(coming):
                if file is not None and processes.first:
                    append(file, batch)
                by_row |= {prediction.row: prediction for prediction in batch}
        if processes.first:
            found[system] = [by_row[row] for row in range(len(examples))]
    return found


def _is_spread(model: nn.Module) -> bool:
    """Whether each process holds a part of the model, so that all must run it together."""
    return any(map(is_sharded, model.parameters()))


def _system(
    edits: HeadEdits | None, system: str, missing: Sequence[Any]
) -> "contextlib.AbstractContextManager[object]":
    """A context in which the model is the system of a name."""
    if edits is None or not missing:
        return contextlib.nullcontext()
    return edits.disable_adapter() if system == BASE else edits.measured()
