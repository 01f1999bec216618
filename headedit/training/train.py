"""``headedit.train``: a whole training run from a config, from the data on disk to the saved edits."""

import json
import logging
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.utils import wait_for_everyone
from torch import nn

from headedit.data import Data
from headedit.data.batches import PadRight
from headedit.data.config import DataConfig
from headedit.data.loading import load_data
from headedit.data.losses import example_losses
from headedit.data.rows import Vocabulary
from headedit.edits import HeadEdits, attach
from headedit.edits.files.card import write_card
from headedit.errors import HeadEditError
from headedit.hf.config import context_length, text_config
from headedit.io.files import check_writable, write_atomically
from headedit.io.lock import writing_alone
from headedit.runs.files import DATA_FILE, RUN_YAML
from headedit.runs.folder import check_output, folder_state, remove_run, run_date
from headedit.runs.run import Run
from headedit.training.arguments import check_base, check_run
from headedit.training.config import RunConfig, read_run
from headedit.training.config.trackers import check_trackers, tell_trackers
from headedit.training.fit import fit
from headedit.training.memory_plan.check import check_memory
from headedit.training.processes import check_together, device_arguments, is_first, refuse_engines
from headedit.training.recipes.session import GIVEN
from headedit.training.recipes.stage import merge_arguments

logger = logging.getLogger(__name__)


def train(
    config: "str | PathLike[str] | Mapping[str, Any] | RunConfig",
    *,
    resume: bool = False,
    overwrite: bool = False,
    base: nn.Module | None = None,
    progress: bool = True,
    memory_check: bool = True,
    ready: Callable[[HeadEdits, Data], None] | None = None,
    **overrides: Any,
) -> Run:
    """Trains edits as a config says: loads model and data, attaches edits, trains and saves them.

    The output folder gets everything that ``headedit.fit`` writes, ``run.yaml``, with which the run can be repeated,
    and ``data.json``, a report on the data. If the config has a test set, its mean loss over examples, in nats per
    token, is measured at the end: ``run.record["test_loss"]``, and ``run.record["test_loss_base"]`` without edits.

    >>> run = headedit.train("cpu-small", output="out", epochs=1, data={"examples": 50})  # doctest: +SKIP

    Args:
        config: a YAML file, the folder of an earlier run, the name of a config that comes with headedit, a
            ``RunConfig``, or a mapping of its fields.
        resume: resume the run that was stopped in the output folder; if there is none, start a new one; if it is
            finished already, return it.
        overwrite: remove the run in the output folder first: everything that headedit wrote there, and nothing else.
        base: the base model, if it is already loaded; None to load it as the config says.
        progress: show progress bars.
        memory_check: refuse a run that needs more memory than is free, by the numbers of ``headedit plan`` and the
            longest example, before any weight is loaded; not where ``base`` is given.
        ready: called with the handle and the data before training starts.
        overrides: values that replace those of the config: sections with some of their keys, such as
            ``model={"name": "./my-model"}``; keys of the run, such as ``output="out"``; or fields of the recipe, such
            as ``epochs=5``.

    Returns:
        The run. Its ``edits`` are attached to the model.

    Raises:
        HeadEditError: the config is wrong or has no output folder, the data cannot be read or encoded, there is too
            little memory, the model cannot be loaded, or anything that ``headedit.fit`` raises.
        KeyboardInterrupt: Ctrl-C or SIGTERM; the step in which it arrived is saved, and ``resume=True`` continues
            from there.
    """
    if isinstance(config, Mapping):
        config = RunConfig.from_dict(config, "the run's config")
    elif not isinstance(config, RunConfig):
        check_run(config)
    if base is not None:
        check_base(base)
    chosen = read_run(config, overrides)
    if chosen.output is None:
        raise HeadEditError("There is no output folder: give output=..., or --output.")
    folder = check_writable(chosen.output)
    check_output(folder, resume=resume, overwrite=overwrite, base=chosen.model.name)
    arguments = device_arguments(chosen.arguments(), chosen.model.device)
    refuse_engines(arguments)
    world_size = _check(chosen, arguments)
    check_together(world_size, base)
    if resume and chosen.data.date is None:
        chosen = replace(chosen, data=replace(chosen.data, date=run_date(folder)))
    data, tokenizer = prepare(chosen, base=base, progress=progress)
    chosen = replace(chosen, data=replace(chosen.data, date=data.report["date"] or chosen.data.date))
    if memory_check and base is None:
        check_memory(chosen, longest(data))
    model = chosen.model.load() if base is None else base
    edits = attach(model, spec=chosen.spec, config=chosen.edits)
    if ready is not None:
        ready(edits, data)
    wait_for_everyone()  # every process has checked the folder before the first one changes it
    with writing_alone(folder, "trains") if is_first() else nullcontext():
        if is_first():
            check_output(folder, resume=resume, overwrite=overwrite, base=chosen.model.name)  # again, as in ``fit``
            if overwrite:
                remove_run(folder)
            if folder_state(folder) == "new" or not (folder / RUN_YAML).is_file():
                chosen.save(folder)
                _write_report(folder / DATA_FILE, data.report)
        wait_for_everyone()
        run = fit(
            edits,
            data.train,
            data.valid,
            output_dir=folder,
            recipe=chosen.recipe_name,
            seed=chosen.seed,
            seeds=chosen.seeds,
            controls=chosen.controls,
            bootstrap=chosen.bootstrap,
            tokenizer=tokenizer,
            max_length=chosen.data.max_length,
            resume=resume,
            cache_prefix=chosen.cache_prefix,
            arguments=arguments,
            progress=progress,
            **chosen.recipe_fields,
        )
    _name_held_out(run, chosen.data)
    if data.test is not None and "test_loss" not in run.record:
        batch = chosen.training.get("per_device_eval_batch_size", chosen.recipe["batch_size"])
        _add_test_loss(run, edits, data, tokenizer.pad_token_id, batch)
        if is_first():
            write_card(edits, folder)  # again, with the test loss
    return run


def longest(data: Data) -> int:
    """The number of tokens of the longest example."""
    return max(int(data.report[name]["tokens"]["max"]) for name in ("train", "valid", "test") if name in data.report)


def prepare(config: RunConfig, *, base: nn.Module | None = None, progress: bool = True) -> tuple[Data, Any]:
    """Loads the data and the tokenizer of a run, without the model's weights.

    Args:
        config: the run.
        base: the model, if it is already loaded; its embedding says which token ids it has.
        progress: show bars.

    Raises:
        HeadEditError: the model's config or tokenizer cannot be loaded, or the data cannot be read or encoded.
    """
    loaded = config.model.load_config()
    found = context_length(loaded)
    context = None if found is None else int(found)
    tokenizer = config.model.load_tokenizer()
    longest = config.data.max_length
    if longest is not None and context is not None and longest > context:
        logger.warning(
            "data: max_length is %d, but %s has only %d positions; it was not trained on longer inputs.",
            longest,
            config.model.name,
            context,
        )
    vocabulary = None if base is None else Vocabulary.of(base).read
    if vocabulary is None:
        vocabulary = getattr(text_config(loaded), "vocab_size", None)
    return load_data(config.data, tokenizer, context=context, vocabulary=vocabulary, progress=progress), tokenizer


def _check(config: RunConfig, arguments: Mapping[str, Any]) -> int:
    """Refuses arguments and trackers that would otherwise fail after the model is loaded.

    Returns:
        The number of processes that work together, whose process group is in use from then on.
    """
    from transformers import TrainingArguments

    check_trackers(config.logging)
    tell_trackers(config.logging)
    own = {"output_dir": config.output, "eval_strategy": "epoch", "load_best_model_at_end": False}
    try:
        return int(TrainingArguments(**merge_arguments(own, arguments, validated=True)).world_size)
    except (ValueError, ImportError, TypeError, KeyError) as error:
        raise HeadEditError(f"training: transformers refuses these arguments: {error}") from None


def held_out_by(config: DataConfig) -> str | None:
    """Who held out the validation set of a run, in words; None where its config has none."""
    if config.valid is None:
        return None
    source = config.train if isinstance(config.train, str) else ", ".join(config.train)
    if isinstance(config.valid, float) and config.valid < 1:
        return f"held out of {source} by --valid-share (data.valid: {config.valid})"
    if isinstance(config.valid, int | float):
        return f"held out of {source} by data.valid: {int(config.valid)}"
    names = [config.valid] if isinstance(config.valid, str) else config.valid
    kind = "file" if all(Path(name).is_file() for name in names) else "source"
    return f"from the {kind}{'s' if len(names) > 1 else ''} {', '.join(names)}"


def _name_held_out(run: Run, config: DataConfig) -> None:
    """Records who held out the validation set, which ``fit`` was given without its source."""
    by, found = held_out_by(config), run.record.get("held_out")
    if found and by is not None and found["by"] == GIVEN:
        found["by"] = by
        if PartialState().is_main_process:
            run.save()


def _add_test_loss(run: Run, edits: HeadEdits, data: Data, pad: int | None, batch: int) -> None:
    assert data.test is not None
    collate = PadRight(pad if pad is not None and Vocabulary.of(edits.model).has(pad) else 0)
    run.record["test_examples"] = len(data.test)
    run.record["test_loss"] = example_losses(edits.model, data.test, collate, batch).mean().item()
    with edits.disable_adapter():
        base = example_losses(edits.model, data.test, collate, batch).mean().item()
    run.record["test_loss_base"] = base
    if PartialState().is_main_process:
        run.save()


def _write_report(file: Path, report: dict[str, Any]) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, (json.dumps(report, indent=2, ensure_ascii=False) + "\n").encode())
    except OSError as error:
        raise HeadEditError(f"{file}: cannot be written ({error.strerror}).") from None
