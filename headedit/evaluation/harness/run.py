"""Runs tasks of lm-evaluation-harness (Gao et al., github.com/EleutherAI/lm-evaluation-harness) on an edited model.

The model object is handed over as it is, with its hooks, so nothing is merged or written; the base model is
measured in the same process with the edits switched off.
"""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from headedit.edits.handle import HeadEdits
from headedit.errors import HeadEditError, suggest
from headedit.evaluation.harness.report import HarnessReport, HarnessRow
from headedit.evaluation.scores.statistics import PairedTest, bootstrap, mcnemar, paired_bootstrap
from headedit.hf.modes import evaluating
from headedit.hf.tokenizers import as_tokenizer

_BOOTSTRAP = 1000  # resamples of the harness, for metrics whose standard error has no formula


def run_harness(
    model: nn.Module,
    tokenizer: Any,
    tasks: Sequence[str],
    *,
    edits: HeadEdits | None = None,
    base: bool = True,
    include_path: str | Path | None = None,
    limit: int | None = None,
    num_fewshot: int | None = None,
    batch_size: int = 8,
    apply_chat_template: bool = False,
    seed: int = 0,
) -> HarnessReport:
    """Runs tasks of the harness, with the edits and without.

    Args:
        model: a causal LM of transformers; in eval mode during the call.
        tokenizer: its tokenizer, or the name or folder of it.
        tasks: names of tasks, groups or tags, or patterns such as ``mmlu_*``.
        edits: the handle of the edits on the model.
        base: with edits, measure the base model too, by switching them off.
        include_path: a folder with more task files, which come before the harness's own.
        limit: documents per task, the first ones.
        num_fewshot: examples in the prompt, instead of what each task says.
        batch_size: requests per batch.
        apply_chat_template: put prompts into the tokenizer's chat template.
        seed: seed of few-shot examples and all other draws.

    Raises:
        HeadEditError: lm_eval is not installed, the edits are not on this model, there is no such task or folder,
            or the harness stops on a task.
    """
    try:
        import lm_eval
        from lm_eval.models.huggingface import HFLM
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise HeadEditError(
            f"The tasks of lm-evaluation-harness need lm_eval: pip install 'headedit[lm-eval]' ({error})."
        ) from None
    if edits is not None and (edits.model is not model or not edits.attached):
        raise HeadEditError("edits: are not on this model; give the model that they were attached to or loaded on.")
    if include_path is not None and not Path(include_path).is_dir():
        raise HeadEditError(f"{include_path}: there is no such folder of task files.")
    started = time.perf_counter()
    manager = TaskManager(include_path=None if include_path is None else str(include_path))
    names = _find_tasks(manager, tasks)

    def run_tasks() -> dict[str, Any]:
        try:
            result = lm_eval.simple_evaluate(
                model=HFLM(pretrained=model, tokenizer=as_tokenizer(tokenizer), batch_size=batch_size),
                tasks=list(names),
                task_manager=manager,
                num_fewshot=num_fewshot,
                limit=limit,
                apply_chat_template=apply_chat_template,
                bootstrap_iters=_BOOTSTRAP,
                random_seed=seed,
                numpy_random_seed=seed,
                torch_random_seed=seed,
                fewshot_random_seed=seed,
            )
        except HeadEditError:
            raise
        except Exception as error:  # whatever the harness, datasets, the hub client or a task's own code raises
            lines = str(error).strip().splitlines() or ["it gave no reason"]
            raise HeadEditError(
                f"lm_eval stopped on {', '.join(names)}; are their data available and their files complete? "
                f"It said: {type(error).__name__}: {lines[0]}"
            ) from error
        return dict(result)

    with evaluating(model):
        with nullcontext() if edits is None else edits.measured():
            given = run_tasks()
        without = None
        if edits is not None and base:
            with edits.disable_adapter():
                without = run_tasks()
    return HarnessReport(
        rows=list(_harness_rows(given, without)),
        edited=edits is not None,
        settings={
            "tasks": ",".join(tasks),
            "limit": limit,
            "num_fewshot": num_fewshot,
            "batch_size": batch_size,
            "apply_chat_template": apply_chat_template,
            "seed": seed,
        },
        versions={"lm_eval": given.get("lm_eval_version", ""), "tasks": dict(given["versions"])},
        seconds=time.perf_counter() - started,
    )


def _find_tasks(manager: Any, tasks: Sequence[str]) -> list[str]:
    """The names of the tasks, in their order and each once."""
    if not tasks:
        raise HeadEditError("No task was named. `lm_eval ls tasks` lists those of the harness.")
    names: list[str] = []
    for task in tasks:
        matching = manager.match_tasks([task])
        if not matching:
            raise HeadEditError(
                f"lm_eval {'has no task matching' if '*' in task else 'has no task'} '{task}'."
                f"{suggest(task, manager.all_tasks)} `lm_eval ls tasks` lists them."
            )
        names += [name for name in matching if name not in names]
    return names


def _harness_rows(given: Mapping[str, Any], without: Mapping[str, Any] | None) -> Iterator[HarnessRow]:
    for task, figures in {**given["results"], **given.get("groups", {})}.items():
        others = {} if without is None else {**without["results"], **without.get("groups", {})}[task]
        for key, value in figures.items():
            metric, _, kept = key.partition(",")
            if not kept or metric.endswith("_stderr") or not isinstance(value, (int, float)):
                continue
            spread = f"{metric}_stderr,{kept}"
            yield HarnessRow(
                task=task,
                metric=metric,
                filter=kept,
                n=given["n-samples"].get(task, {}).get("effective", figures.get("sample_len")),
                shots=given["n-shot"].get(task),
                higher_is_better=given["higher_is_better"].get(task, {}).get(metric),
                value=float(value),
                stderr=_number(figures.get(spread)),
                base_value=_number(others.get(key)),
                base_stderr=_number(others.get(spread)),
                paired=None if without is None else _paired(given, without, task, metric, kept),
            )


def _paired(
    given: Mapping[str, Any], without: Mapping[str, Any], task: str, metric: str, kept: str
) -> PairedTest | None:
    """The paired test, if the metric is the mean of one number per document."""
    edited, base = (_by_document(result, task, metric, kept) for result in (given, without))
    if not edited or edited.keys() != base.keys():
        return None
    pairs = [(edited[document], base[document]) for document in edited]
    mine, other = [a for a, _ in pairs], [b for _, b in pairs]
    n = len(pairs)
    if not math.isclose(sum(mine) / n, given["results"][task][f"{metric},{kept}"], abs_tol=1e-9):
        return None
    if {*mine, *other} <= {0.0, 1.0}:
        return mcnemar([value == 1.0 for value in mine], [value == 1.0 for value in other])
    draws = [bootstrap(partial(_mean, values), n) for values in (mine, other)]
    return paired_bootstrap(draws[0], draws[1], (sum(mine) - sum(other)) / n, n)


def _mean(values: Sequence[float], rows: Sequence[int]) -> float:
    return sum(values[row] for row in rows) / len(rows)


def _by_document(result: Mapping[str, Any], task: str, metric: str, kept: str) -> dict[int, float]:
    """The metric of each document; empty if it is not one number per document."""
    samples = [sample for sample in result["samples"].get(task, []) if sample["filter"] == kept]
    values = {sample["doc_id"]: _number(sample.get(metric)) for sample in samples}
    return {} if None in values.values() else {document: float(value or 0) for document, value in values.items()}


def _number(value: Any) -> float | None:
    """A figure of the harness; None for its N/A."""
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else None
