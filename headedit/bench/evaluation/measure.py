"""Times of the evaluation of a task, by headedit and by lm-evaluation-harness in turn, and whether they agree."""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from headedit.bench.evaluation.peer import Peer, peer_reason
from headedit.bench.results import BenchResult, Row
from headedit.evaluation.answers.answers import answers
from headedit.evaluation.answers.predictions import Prediction
from headedit.evaluation.tasks.examples import Example
from headedit.evaluation.tasks.records import TaskData, load_examples, load_rows
from headedit.evaluation.tasks.task import Task
from headedit.hf.modes import evaluating

OURS = "headedit"
_COLUMNS = [
    "system",
    "batch size",
    "seconds",
    "times headedit's",
    "accuracy",
    "same answers",
    "largest difference, nats",
]


def measure_evaluation(
    model: nn.Module,
    tokenizer: Any,
    task: Task,
    *,
    data: TaskData | None = None,
    limit: int | None = None,
    seed: int = 0,
    batch_size: int = 32,
    peer_batch_sizes: Sequence[int] = (8, 32),
    stop: str = "\n",
    repeats: int = 3,
) -> BenchResult:
    """Measures the seconds from prompts to answers, by each system in turn; nothing is loaded meanwhile.

    Both get the same prompts and options as text, so their tokenisation is counted. The batch sizes of the harness are
    measured separately, and the fastest is what counts. Ours generates to the end of the first line that has text; the
    harness stops at ``stop`` wherever it comes, before any text too, and then does less.

    Args:
        model: a causal LM, with edits on it or not.
        tokenizer: its tokenizer.
        task: the task; a free or extracted answer is generated greedily, whatever beams it asks for.
        data: records, or where they are; by default the task's.
        limit: use at most this many examples, drawn by the seed.
        seed: seed of that draw.
        batch_size: of headedit.
        peer_batch_sizes: of the harness; empty to leave it out.
        stop: text that ends what the harness generates; empty for the end-of-text alone.
        repeats: rounds that are counted, after one that is not.

    Returns:
        A row for each system and batch size; the settings say why the harness was left out, if it was.

    Raises:
        HeadEditError: the task's records cannot be read.
    """
    examples, _ = load_examples(task, load_rows(task, data), tokenizer, limit=limit, seed=seed, skip_broken=False)
    new_tokens = task.max_new_tokens or 16
    reason = peer_reason()
    peers = {} if reason else {size: Peer(model, tokenizer, size, stop) for size in peer_batch_sizes}

    def ours() -> list[Prediction]:
        return _ours(model, tokenizer, task, examples, new_tokens, batch_size)

    runs: dict[tuple[str, int], Callable[[], list[Prediction]]] = {(OURS, batch_size): ours}
    for size, peer in peers.items():
        runs[Peer.NAME, size] = lambda peer=peer: peer.answers(task, examples, new_tokens)  # type: ignore[misc]
    seconds: dict[tuple[str, int], list[float]] = {key: [] for key in runs}
    found: dict[tuple[str, int], list[Prediction]] = {}
    with evaluating(model), torch.no_grad():
        for turn in range(repeats + 1):
            for key, run in runs.items():
                started = time.perf_counter()
                found[key] = run()
                if turn:
                    seconds[key].append(time.perf_counter() - started)
    rows = [_row(key, seconds, found, (OURS, batch_size)) for key in runs]
    return BenchResult(
        title=f"Evaluation of {task.name}, by {task.scoring}",
        settings={
            "task": task.name,
            "scoring": task.scoring,
            "examples": len(examples),
            "max_new_tokens": new_tokens,
            "stop": stop,
            "repeats": repeats,
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "lm_eval": reason or Peer.version(),
        },
        rows=rows,
        summary=[row for row in rows if row["system"] != OURS and row["seconds"] == _fastest(rows)],
        tables=[(f"{len(examples)} examples", _COLUMNS, [[row[name] for name in _COLUMNS] for row in rows])],
    )


def _ours(
    model: nn.Module, tokenizer: Any, task: Task, examples: Sequence[Example], new_tokens: int, batch_size: int
) -> list[Prediction]:
    greedy = replace(task, num_beams=1)
    numbered = list(enumerate(examples))
    options: dict[str, Any] = {"max_new_tokens": new_tokens, "batch_size": batch_size, "progress": False}
    batches = answers(model, tokenizer, greedy, numbered, system=OURS, **options)
    return sorted((row for batch in batches for row in batch), key=lambda prediction: prediction.row)


def _row(
    key: tuple[str, int],
    seconds: dict[tuple[str, int], list[float]],
    found: dict[tuple[str, int], list[Prediction]],
    ours: tuple[str, int],
) -> Row:
    mine, theirs = found[ours], found[key]
    pairs = list(zip(mine, theirs, strict=True))
    differences = [abs(a - b) for x, y in pairs for a, b in zip(x.scores or (), y.scores or (), strict=True)]
    ratios = [theirs / mine for mine, theirs in zip(seconds[ours], seconds[key], strict=True)]
    return {
        "system": key[0],
        "batch size": key[1],
        "seconds": statistics.median(seconds[key]),
        "times headedit's": None if key == ours else statistics.median(ratios),
        "ratios": ratios,
        "accuracy": sum(y.prediction in y.answers for _, y in pairs) / len(pairs),
        "same answers": sum(x.prediction == y.prediction for x, y in pairs) / len(pairs),
        "largest difference, nats": max(differences, default=None),
    }


def _fastest(rows: Sequence[Row]) -> float | None:
    return min((row["seconds"] for row in rows if row["system"] != OURS), default=None)
