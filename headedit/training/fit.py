"""``headedit.fit``: trains edits on examples by a named recipe."""

import functools
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from os import PathLike
from typing import Any

from accelerate.utils import wait_for_everyone
from torch import nn

from headedit.data.clock import Clock
from headedit.edits import HeadEdits
from headedit.edits.files.card import write_card
from headedit.edits.files.storage import load_tensors
from headedit.edits.gate_set import heads_of, open_gates
from headedit.edits.values import whole_number
from headedit.errors import HeadEditError
from headedit.hf.models import check_causal_lm
from headedit.hf.names import portable_name
from headedit.hf.quantized import differentiable
from headedit.hf.tokenizers import as_tokenizer
from headedit.io.bars import write_above_bars
from headedit.io.files import check_writable
from headedit.io.lock import writing_alone
from headedit.runs.files import PATH_FILE, PATH_TENSOR_FILE
from headedit.runs.folder import DATE, check_outputs, folder_state, run_date
from headedit.runs.run import Run, times
from headedit.training.arguments import (
    check_examples,
    check_fields,
    check_settings,
    recipe_name,
)
from headedit.training.config.names import checked_arguments
from headedit.training.controls import Metric, figures_of, run_controls, stability_of
from headedit.training.examples import encode_examples
from headedit.training.finished import finished_run
from headedit.training.loop.other_weights import refuse_other_weights
from headedit.training.prefix_cache import FrozenPrefix
from headedit.training.processes import DEVICE_ARGUMENTS, device_arguments, is_first, join_processes, refuse_engines
from headedit.training.recipes import DEFAULT, Recipe, make_recipe
from headedit.training.recipes.effort import planned_text
from headedit.training.recipes.journal import digest, digest_rows, own_identity
from headedit.training.recipes.session import Session
from headedit.training.recipes.stability_selection import check_halves, select_heads
from headedit.training.trainable import edits_to_train


def fit(
    edits: HeadEdits | nn.Module,
    train: Iterable[Any],
    valid: Iterable[Any] | None = None,
    *,
    output_dir: "str | PathLike[str] | None" = None,
    recipe: str = DEFAULT,
    seed: int = 0,
    seeds: int = 1,
    controls: bool = False,
    bootstrap: int = 0,
    metric: Metric | None = None,
    tokenizer: Any = None,
    max_length: int | None = None,
    skip_malformed: bool = False,
    resume: bool = False,
    overwrite: bool = False,
    cache_prefix: bool = False,
    arguments: Mapping[str, Any] | None = None,
    progress: bool = True,
    **overrides: Any,
) -> Run:
    """Trains edits in place by a recipe, and saves them with the history of the run.

    >>> from headedit.demo import MODEL_FOLDER, tasks  # a tiny model that comes with headedit, and its tasks
    >>> model = headedit.load_model(str(MODEL_FOLDER), device="cpu")
    >>> edits = headedit.attach(model)
    >>> examples = tasks.records("reverse", 48, cued=False, seed=0)  # of text: prompts and responses
    >>> run = headedit.fit(
    ...     edits, examples[:32], examples[32:], output_dir="out", recipe="jola", epochs=1, progress=False
    ... )
    >>> run.record["train_examples"], run.record["valid_examples"]
    (32, 16)
    >>> figure = headedit.plot.history(run)

    Args:
        edits: the handle, or the model that carries the edits; the base model is not changed.
        train: training examples: (prompt, response) pairs, records in any format of ``headedit.data.formats``,
            conversations included, or records with ``input_ids`` and ``labels``; as a list, a ``datasets.Dataset`` or
            a split of ``headedit.load_data``.
        valid: validation examples, in the same forms. Recipes choose heads and stop early by the loss on them, without
            penalty. If None, ``localise`` holds out some training examples, and the other recipes run to their end.
        output_dir: folder for the edits, ``history.jsonl``, ``run.json`` and, with ``localise``, the pruning path; it
            must be given. Until the run is finished, ``checkpoints/`` is there too. A folder that holds a run, or
            edits, is refused unless ``resume`` or ``overwrite`` is given, and the base model's always.
        recipe: name of the recipe: ``localise``, ``jola``, ``lofit``, ``ist``, ``rst``, ``refit`` or ``ungated``; or
            ``jola-paper``, ``jola-released`` or ``lofit-released``, which are published runs.
        seed: seed of the order of examples and of the gates' noise; the same seed gives the same edits.
        seeds: number of runs, with the seeds ``seed``, ``seed + 1``, ...; all but the first in folders ``seed-<n>``.
            The edits of the first run are kept, and ``run.stability`` says how far the chosen heads agree.
        controls: also fit as many random gates, and every head without gates, and measure the chosen gates with random
            vectors of the same norms; ``run.controls`` has the figures of each.
        bootstrap: number of halves of the training examples, even, on which all gates are ranked before the recipe
            begins, each for 60 steps; 20 is a good number, 0 leaves it out. ``run.selection`` says how often each gate
            is selected, which gates the halves agree on, and how many of these may be false; the recipe chooses its
            own heads as without it.
        metric: measures the edited model, called without arguments; for ``seeds`` and ``controls``, in addition to the
            validation loss.
        tokenizer: tokenizer for examples of text, or its name or folder; None for the one at the model's own name or
            path.
        max_length: largest number of tokens per example; longer examples are dropped and reported. None for the model's
            context length.
        skip_malformed: drop and report examples that cannot be used, such as one without a label or with a token id
            that the model does not have, instead of stopping at the first.
        resume: resume the run that was stopped in ``output_dir``; if there is none, start a new one; if it is finished
            already, return it. All other arguments, and the edits, must be as they were at its start. A run that was
            stopped at any moment, by whatever cause, ends with the same edits as one that was not, bit for bit. A chat
            template is given the date of the run's start.
        overwrite: remove the run, or the edits, in ``output_dir`` first: everything that headedit wrote there, and
            nothing else.
        cache_prefix: run the layers below the first edited one only once for each example, and start every later pass
            at the first edited layer. It takes tokens × hidden size × bytes per element of host memory, for all
            examples together; ``run.record["prefix_cache"]`` has layers, examples and bytes. With a batch size of 1 the
            edits are the same bit for bit, in larger batches within rounding. Models and settings for which this is not
            so, such as dropout, layers that pass on more than hidden states, FSDP and autocast, are refused.
        arguments: fields of ``transformers.TrainingArguments`` that replace those of the recipe, such as
            ``gradient_accumulation_steps``, ``save_steps`` or ``report_to``; None leaves a field as it is.
        progress: show progress bars.
        overrides: fields of the recipe, such as ``epochs=5`` or ``budget=0.05``; see its class in
            ``headedit.training.recipes``.

    Returns:
        The run, with its record, its history and the handle. The model is in the mode, train or eval, in which it was.

    Raises:
        HeadEditError: a set of examples is empty or malformed, or the training set is smaller than the batch size; the
            recipe or one of its fields is unknown, or a value is of a wrong type or out of range; the model gives no
            logits for the next token; the edits are detached, merged, disabled or frozen; other weights of the model
            are trainable, which only ``HeadEditTrainer`` saves; several processes were started that would each train by
            itself; DeepSpeed or FSDP1 is to run the model; another process trains into the folder; the folder cannot be
            written, or holds what would be lost; the loss becomes NaN or infinite; or the run to resume differs.
        KeyboardInterrupt: Ctrl-C or SIGTERM, raised at the end of the step in which it arrived; that step is saved, and
            ``resume=True`` continues from there.
    """
    check_settings(
        output_dir=output_dir,
        metric=metric,
        arguments=arguments,
        switches={
            "controls": controls,
            "resume": resume,
            "overwrite": overwrite,
            "cache_prefix": cache_prefix,
            "skip_malformed": skip_malformed,
            "progress": progress,
        },
    )
    seed, seeds = whole_number(seed, "seed"), whole_number(seeds, "seeds", "the number of runs")
    bootstrap = whole_number(bootstrap, "bootstrap", "the number of halves")
    if bootstrap:
        check_halves(bootstrap)
    max_length = None if max_length is None else whole_number(max_length, "max_length")
    edits = edits_to_train(edits)
    check_causal_lm(edits.model, "headedit.fit")
    check_examples(train, "train")
    if valid is not None:
        check_examples(valid, "valid")
    recipe = recipe_name(recipe)
    check_fields(recipe, overrides)
    chosen = make_recipe(recipe, overrides)
    if seeds < 1:
        raise HeadEditError(f"seeds: found {seeds}, expected 1 or more.")
    if (controls or seeds > 1) and valid is None and metric is None:
        raise HeadEditError("Several seeds, and controls, are compared on validation examples or a metric; give one.")
    edits.check_trainable()
    refuse_other_weights(
        edits.model, edits, "headedit.fit", "headedit.HeadEditTrainer trains and saves them together with the edits."
    )
    arguments = device_arguments(checked_arguments(arguments or {}))
    refuse_engines(arguments)
    processes = join_processes(arguments, edits.model)
    prefix = FrozenPrefix(edits, dict(arguments)) if cache_prefix else None
    assert output_dir is not None
    folder = check_writable(output_dir)
    places = [folder, *(folder / f"seed-{number}" for number in range(seed + 1, seed + seeds))]
    base = getattr(edits.model.config, "_name_or_path", "")
    check_outputs(places, resume=resume, overwrite=overwrite, base=base)
    with Clock(run_date(folder) if resume else None) as clock:
        train_rows, valid_rows, pad = encode_examples(
            edits, train, valid, as_tokenizer(tokenizer), max_length, progress, skip_malformed
        )
    date = clock.date or getattr(train, "date", None)
    if len(train_rows) < chosen.batch_size:
        raise HeadEditError(
            f"The training set has {len(train_rows)} examples, fewer than the batch size of {chosen.batch_size}; give "
            f"more examples, or batch_size={len(train_rows)}."
        )
    identity = {
        "settings": digest(
            [recipe, vars(chosen), {name: v for name, v in arguments.items() if name not in DEVICE_ARGUMENTS}]
        ),
        "training examples": digest_rows(train_rows),
        "validation examples": digest_rows(valid_rows),
        **({} if date is None else {DATE: date}),
        **({"cache_prefix": digest(True)} if cache_prefix else {}),
        **({"number of processes": str(processes)} if processes > 1 else {}),
        **({"number of seeds": str(seeds)} if seeds > 1 else {}),
        **({"controls": digest(True)} if controls else {}),
        **({"bootstrap": str(bootstrap)} if bootstrap else {}),
    }
    with writing_alone(folder, "trains") if is_first() else nullcontext():
        if is_first():
            check_outputs(places, resume=resume, overwrite=overwrite, base=base)  # again: another may have trained here
        if resume and folder_state(folder) == "finished":
            return finished_run(edits, folder, {**identity, **own_identity(seed, edits.snapshot())})
        edits.module.date = date
        controlled = functools.partial(run_controls, metric=metric) if controls else None
        start, sessions, runs, figures = edits.snapshot(), [], [], []
        for number in range(seed, seed + seeds):
            edits.restore(start)
            session = Session(
                edits,
                train_rows,
                valid_rows,
                folder if number == seed else folder / f"seed-{number}",
                number,
                pad,
                progress,
                identity=identity,
                arguments=dict(arguments),
                resume=resume,
                overwrite=overwrite,
                batch_size=chosen.batch_size,
                prefix=prefix,
            )
            sessions.append(session)
            runs.append(_run(session, recipe, chosen, controlled, bootstrap if number == seed else 0))
            if seeds > 1:
                figures.append({**figures_of(session, metric), "heads": heads_of(open_gates(edits.module))})
        if seeds > 1:
            load_tensors(edits, folder)
            runs[0].record["stability"] = stability_of(edits, seed, figures).to_dict()
            if sessions[0].main:
                runs[0].save()
        for session in reversed(sessions):  # while there is a journal in the run's own folder, the run can be resumed
            session.journal.clear()
        return runs[0]


def _run(session: Session, name: str, recipe: Recipe, controls: Callable[..., Any] | None, bootstrap: int) -> Run:
    """Runs a recipe in a session, and saves edits, record and card."""
    edits, folder = session.edits, session.folder
    if session.main:
        for stale in (PATH_FILE, PATH_TENSOR_FILE):
            (folder / stale).unlink(missing_ok=True)
    was_training = edits.model.training
    started = time.perf_counter()
    stages = recipe.plan(len(session.train), validated=session.valid is not None, batches_per_step=session.batches)
    if stages:
        session.planned = sum(stage.steps for stage in stages)
        if session.progress and session.main:
            write_above_bars(f"{name}: {planned_text(stages)}")
    try:
        with differentiable(edits.model), session.prefix or nullcontext():
            selection = select_heads(session, bootstrap) if bootstrap else None
            recipe.run(session)
            held_out = session.keep_better()
            seconds = time.perf_counter() - started
            control_figures = None if controls is None else controls(session, recipe)
    finally:
        edits.model.train(was_training)
    session.history.append({"step": session.kept_step, "kept": True})
    best = session.best_eval_loss
    record = {
        "recipe": name,
        "settings": vars(recipe),
        "seed": session.seed,
        "base_model": portable_name(getattr(edits.model.config, "_name_or_path", "")),
        "train_examples": len(session.train),
        "valid_examples": len(session.valid or []),
        "steps": session.steps,
        "kept_step": session.kept_step,
        "best_eval_loss": held_out["edited"] if best is None and held_out is not None else best,
        "held_out": held_out,
        "open": {kind: {"open": n, "of": total} for kind, (n, total) in edits.count_open().items()},
        **times(seconds),
        "identity": session.key,
        **({} if control_figures is None else {"controls": control_figures}),
        **({} if selection is None else {"selection": selection.to_dict()}),
        **({} if session.prefix is None else {"prefix_cache": session.prefix.figures}),
    }
    run = Run(folder, session.history, record, edits)
    if session.main:
        edits.save_pretrained(folder, card=False)
        if session.path is not None:
            session.path.save(folder)
        run.save()
        write_card(edits, folder)  # after run.json, which it reports
    wait_for_everyone()
    return run
