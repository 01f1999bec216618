"""``headedit.fit``: trains the edits on a few hundred examples by a named recipe."""

import functools
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from os import PathLike
from typing import Any

from accelerate.utils import wait_for_everyone

from headedit.data.batches import Encoded
from headedit.data.encoding import encode
from headedit.edits import HeadEdits
from headedit.edits.files.card import write_card
from headedit.edits.files.storage import load_tensors
from headedit.edits.gate_set import heads_of, open_gates
from headedit.errors import HeadEditError
from headedit.hf.config import context_length
from headedit.hf.loading import load_tokenizer
from headedit.hf.quantized import differentiable
from headedit.io.files import check_writable
from headedit.runs.files import PATH_FILE, PATH_TENSOR_FILE
from headedit.runs.run import Run
from headedit.runs.stability import Spread, Stability, agreement
from headedit.training.controls import Metric, measured, run_controls
from headedit.training.prefix_cache import FrozenPrefix
from headedit.training.recipes import DEFAULT, Recipe, make_recipe
from headedit.training.recipes.journal import digest, digest_rows
from headedit.training.recipes.session import Session


def fit(
    edits: HeadEdits,
    train: Iterable[Any],
    valid: Iterable[Any] | None = None,
    *,
    output_dir: "str | PathLike[str]",
    recipe: str = DEFAULT,
    seed: int = 0,
    seeds: int = 1,
    controls: bool = False,
    metric: Metric | None = None,
    tokenizer: Any = None,
    max_length: int | None = None,
    resume: bool = False,
    cache_prefix: bool = False,
    arguments: Mapping[str, Any] | None = None,
    progress: bool = True,
    **overrides: Any,
) -> Run:
    """Trains edits in place and saves them, with the history of the run.

    Args:
        edits: the handle; the base model stays as it is.
        train: examples: (prompt, response) pairs, records of any form that ``headedit.data.formats`` names,
            conversations too, or records of ``input_ids`` and ``labels``; a list, a ``datasets.Dataset``, or a split
            of ``headedit.load_data``.
        valid: the same, to choose and to stop by, on the plain loss. Without it ``localise`` holds some of the
            training examples out while it searches, and the other recipes go to their end.
        output_dir: gets the edits, ``history.jsonl``, ``run.json``, ``checkpoints/`` and, from ``localise``, the
            pruning path.
        recipe: a name, see ``headedit.training.recipes``.
        seed: of the order of examples and the gates' noise; the same seed gives the same edits.
        seeds: number of runs, with the seeds from ``seed`` on, the later ones in folders of their own. The edits of
            the first are kept; ``run.stability`` says how far the chosen heads agree.
        controls: also fit as many random gates, and every head without gates, and put random vectors of the same
            norms on the chosen gates; ``run.controls`` has the figures of all.
        metric: measures the edited model, called without arguments, for ``seeds`` and ``controls``; beside the
            validation loss.
        tokenizer: by default the one at the model's own name or path, if texts are given.
        max_length: examples of more tokens are left out and reported; by default the model's context.
        resume: go on with the run that was stopped in ``output_dir``, at any moment and however: it ends with the
            edits that it would have had, bit for bit. Everything else must be as it was. Where there is none, begin.
        cache_prefix: where upper layers alone are edited, run the frozen ones below them once for each example, and
            begin every later pass at the first edited layer. It takes tokens × hidden size × bytes an element of host
            memory, for all examples together; ``run.record["prefix_cache"]`` has layers, examples and bytes. At a batch
            of one the edits are the same to the bit, in larger batches within rounding. What cannot have it to the
            bit, such as dropout, layers that share more than hidden states, FSDP and autocast, is refused.
        arguments: fields of ``transformers.TrainingArguments`` over the recipe's own choices, such as
            ``gradient_accumulation_steps``, ``save_steps`` or ``report_to``.
        progress: show bars.
        overrides: fields of the recipe, such as ``epochs=5`` or ``budget=0.05``.

    Returns:
        The run. The model is in the mode, train or eval, that it was in before.

    Raises:
        HeadEditError: a set is empty, smaller than the batch or of another form, the recipe or a field of it is not
            known, the loss becomes NaN, the edits are detached, the folder cannot be written, or what is to be
            gone on with differs.
        KeyboardInterrupt: Ctrl-C, or a SIGTERM, at the end of the step in which it came; that step is saved.
    """
    chosen = make_recipe(recipe, overrides)
    if seeds < 1:
        raise HeadEditError(f"seeds: found {seeds}, expected 1 or more.")
    if (controls or seeds > 1) and valid is None and metric is None:
        raise HeadEditError("Several seeds, and controls, are compared on validation examples or a metric; give one.")
    if not edits.attached:
        raise HeadEditError("These edits are detached from their model; attach or load them again to train.")
    if not any(p.requires_grad for p in edits.vector_parameters()):
        raise HeadEditError(
            "These edits are frozen, so nothing would be trained; PEFT's get_peft_model freezes what is there. Call "
            "edits.module.requires_grad_(True) first."
        )
    prefix = FrozenPrefix(edits, dict(arguments or {})) if cache_prefix else None
    folder = check_writable(output_dir)
    train_rows, valid_rows, pad = _encoded(edits, train, valid, tokenizer, max_length, progress)
    if len(train_rows) < chosen.batch_size:
        raise HeadEditError(
            f"The training set has {len(train_rows)} examples, fewer than the batch of {chosen.batch_size}; give more "
            f"examples, or batch_size={len(train_rows)}."
        )
    identity = {
        "settings": digest([recipe, vars(chosen), dict(arguments or {})]),
        "training examples": digest_rows(train_rows),
        "validation examples": digest_rows(valid_rows),
        **({"cache_prefix": digest(True)} if cache_prefix else {}),
    }
    controlled = functools.partial(run_controls, metric=metric) if controls else None
    start, sessions, runs, figures = edits.snapshot(), [], [], []
    for number in range(seed, seed + seeds):
        edits.restore(start)
        where = folder if number == seed else folder / f"seed-{number}"
        session = Session(
            edits,
            train_rows,
            valid_rows,
            where,
            number,
            pad,
            progress,
            identity=identity,
            arguments=dict(arguments or {}),
            resume=resume,
            batch_size=chosen.batch_size,
            prefix=prefix,
        )
        sessions.append(session)
        runs.append(_run(session, recipe, chosen, controlled))
        if seeds > 1:
            figures.append({**measured(session, metric), "heads": heads_of(open_gates(edits.module))})
    if seeds > 1:
        load_tensors(edits, folder)
        runs[0].record["stability"] = _stability(edits, seed, figures).to_dict()
        if sessions[0].main:
            runs[0].save()
    for session in sessions:
        session.journal.clear()
    return runs[0]


def _run(session: Session, name: str, recipe: Recipe, controls: Callable[..., Any] | None) -> Run:
    edits, folder = session.edits, session.folder
    if session.main:
        for stale in (PATH_FILE, PATH_TENSOR_FILE):
            (folder / stale).unlink(missing_ok=True)
    was_training = edits.model.training
    started = time.perf_counter()
    try:
        with differentiable(edits.model), session.prefix or nullcontext():
            recipe.run(session)
            seconds = time.perf_counter() - started
            found = None if controls is None else controls(session, recipe)
    finally:
        edits.model.train(was_training)
    session.history.append({"step": session.kept_step, "kept": True})
    record = {
        "recipe": name,
        "settings": vars(recipe),
        "seed": session.seed,
        "base_model": getattr(edits.model.config, "_name_or_path", ""),
        "train_examples": len(session.train),
        "valid_examples": len(session.valid or []),
        "steps": session.steps,
        "kept_step": session.kept_step,
        "best_eval_loss": session.best_eval_loss,
        "open": {kind: {"open": n, "of": total} for kind, (n, total) in edits.count_open().items()},
        "seconds": round(seconds, 2),
        **({} if found is None else {"controls": found}),
        **({} if session.prefix is None else {"prefix_cache": session.prefix.record}),
    }
    run = Run(folder, session.history, record, edits)
    if session.main:
        edits.save_pretrained(folder, card=False)
        if session.path is not None:
            session.path.save(folder)
        run.save()
        write_card(edits, folder)  # after run.json, which it tells of
    wait_for_everyone()
    return run


def _encoded(
    edits: HeadEdits,
    train: Iterable[Any],
    valid: Iterable[Any] | None,
    tokenizer: Any,
    max_length: int | None,
    progress: bool,
) -> tuple[Sequence[Encoded], Sequence[Encoded] | None, int]:
    train, valid = _listed(train), None if valid is None else _listed(valid)
    if tokenizer is None and any(not _is_encoded(row) for row in [*train[:1], *(valid or [])[:1]]):
        tokenizer = load_tokenizer(getattr(edits.model.config, "_name_or_path", ""))
    length = context_length(edits.model) if max_length is None else max_length
    encoding = functools.partial(encode, tokenizer=tokenizer, max_length=length, progress=progress)
    pad = getattr(tokenizer, "pad_token_id", None)
    rows = encoding(train, name="training")
    return rows, None if valid is None else encoding(valid, name="validation"), 0 if pad is None else pad


def _stability(edits: HeadEdits, seed: int, figures: list[dict[str, Any]]) -> Stability:
    chosen = [figure["heads"] for figure in figures]
    jaccard, chance = agreement(chosen, edits.count_open()["any"][1])
    spreads = {
        key: None if figures[0][key] is None else Spread.of([figure[key] for figure in figures])
        for key in ("validation_loss", "metric")
    }
    return Stability(
        seeds=list(range(seed, seed + len(figures))),
        heads=[len(heads) for heads in chosen],
        jaccard=jaccard,
        chance=chance,
        **spreads,
    )


def _listed(examples: Iterable[Any]) -> Sequence[Any]:
    return examples if isinstance(examples, Sequence) else list(examples)


def _is_encoded(row: Any) -> bool:
    return isinstance(row, dict) and "input_ids" in row
