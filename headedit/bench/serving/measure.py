"""Seconds per decoding step of vLLM with edits, against plain vLLM: ``python -m headedit.bench.serving.measure``.

Two engines run in one process, one without edits and one that serves them. Their batches take turns, so that what else
the machine does falls on all alike; medians over the rounds are compared.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Any

from headedit.bench.results import counted
from headedit.errors import HeadEditError
from headedit.serving.folders import VARIABLE, named_edits

_BATCH, _TOKENS, _ROUNDS, _PROMPT = 64, 32, 11, 8
_PLAIN, _NONE = "plain vLLM", "served, no edit in the batch"
_MOST_EDITS = 16


def measure(model: str, edits: Sequence[str], rounds: int = _ROUNDS, batch: int = _BATCH) -> dict[str, Any]:
    """Median seconds per decoding step of each way, and milliseconds to load an edit.

    Args:
        model: folder or hub id.
        edits: folders of saved edits, or folders of such folders; requests choose among the first 16 edits.
        rounds: how often each way is timed, after one round that is not counted.
        batch: requests at once.

    Raises:
        HeadEditError: the folders hold no edits.
    """
    names = list(named_edits(edits))[: min(_MOST_EDITS, batch)]
    if not names:
        raise HeadEditError(
            f"{', '.join(edits)}: holds no saved edits to serve; name folders that edits.save_pretrained wrote."
        )
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ.pop(VARIABLE, None)
    plain = _engine(model, batch)
    os.environ[VARIABLE] = os.pathsep.join(edits)
    serving = _engine(model, batch)
    ways: dict[str, tuple[Any, list[str | None]]] = {
        _PLAIN: (plain, [None] * batch),
        _NONE: (serving, [None] * batch),
        f"served, {counted(names, 'edit')} in the batch": (serving, [names[i % len(names)] for i in range(batch)]),
    }
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(rounds + 1):
        for way, (engine, chosen) in ways.items():
            seconds[way].append(_step(engine, chosen))
    found = {way: statistics.median(times[1:]) for way, times in seconds.items()}
    return {"seconds_per_step": found, "ratio": _ratios(found), "load_ms": _load_ms(serving, edits)}


def _ratios(seconds: Mapping[str, float]) -> dict[str, float]:
    return {way: value / seconds[_PLAIN] for way, value in seconds.items() if way != _PLAIN}


def _engine(model: str, batch: int) -> Any:
    from vllm import LLM

    return LLM(model, max_num_seqs=batch, max_model_len=_PROMPT + _TOKENS + 8, skip_tokenizer_init=True)


def _step(engine: Any, chosen: Sequence[str | None]) -> float:
    """Seconds per decoding step of a batch; its first step, the prompts', counts as one."""
    from vllm import SamplingParams

    def params(edit: str | None) -> Any:
        extra = None if edit is None else {"headedit": edit}
        return SamplingParams(temperature=0, max_tokens=_TOKENS, ignore_eos=True, detokenize=False, extra_args=extra)

    prompts = [{"prompt_token_ids": [3 + (i + 7 * j) % 90 for j in range(_PROMPT)]} for i in range(len(chosen))]
    begin = time.perf_counter()
    engine.generate(prompts, [params(edit) for edit in chosen], use_tqdm=False)
    return (time.perf_counter() - begin) / _TOKENS


def _load_ms(engine: Any, edits: Sequence[str]) -> float:
    """Median milliseconds to load an edit into a running engine."""
    from headedit.serving.vllm.live import load_edit

    folder, times = next(iter(named_edits(edits).values())), []
    for i in range(_ROUNDS):
        begin = time.perf_counter()
        load_edit(engine, f"loaded{i}", folder)
        times.append(1000 * (time.perf_counter() - begin))
    return statistics.median(times[1:])


def main() -> None:
    """Prints what was measured, as JSON."""
    parser = argparse.ArgumentParser(description="Seconds per decoding step of vLLM with edits, against plain vLLM.")
    parser.add_argument("model", help="folder or hub id")
    parser.add_argument("edits", nargs="+", help="folders of saved edits, or folders of such folders")
    parser.add_argument("--rounds", type=int, default=_ROUNDS, help="timed rounds (default %(default)s)")
    parser.add_argument("--batch", type=int, default=_BATCH, help="requests at once (default %(default)s)")
    given = parser.parse_args()
    print(json.dumps(measure(given.model, given.edits, given.rounds, given.batch), indent=2))


if __name__ == "__main__":
    main()
