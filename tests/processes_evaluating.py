"""``headedit.evaluate`` in two processes, one of which fails now and then: ``processes_evaluating.py OUTPUT``."""

import json
import os
import sys
from contextlib import contextmanager
from pathlib import Path

import torch

import headedit
from headedit import HeadEditError, Task
from headedit.demo import MODEL_FOLDER, tasks
from headedit.evaluation.answers import systems
from headedit.hf.loading import load_model

LETTERS = Task(
    name="letters", prompt="{{ prompt }}", answer="response", template="plain", max_new_tokens=10, num_beams=1
)
ROWS = tasks.records("swap", 20, cued=True, seed=5)


def evaluated(model, output, **options):
    return headedit.evaluate(model, LETTERS, data=ROWS, output=output, batch_size=2, progress=False, **options)


@contextmanager
def failing(error, calls=1):
    """A context in which predictions fail after some calls."""
    predict = systems.answers

    def answers(*args, **options):
        for _, batch in zip(range(calls), predict(*args, **options), strict=False):
            yield batch
        raise error

    systems.answers = answers
    try:
        yield
    finally:
        systems.answers = predict


def said(call):
    try:
        call()
    except (HeadEditError, KeyboardInterrupt) as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


if __name__ == "__main__":
    torch.set_num_threads(1)
    output, rank = Path(sys.argv[1]), int(os.environ["RANK"])
    model = load_model(str(MODEL_FOLDER), device="cpu")
    found = {}
    for name, error in (("error", HeadEditError("row 7 is empty")), ("stop", KeyboardInterrupt("by hand"))):
        with failing(error) if rank == 1 else failing(AssertionError, 99):
            found[name] = said(lambda: evaluated(model, output / "stopped.json"))
    kept = (output / "stopped.predictions.jsonl").read_text().splitlines() if rank == 0 else []
    found["kept"] = len(kept)
    resumed = evaluated(model, output / "stopped.json")
    found["resumed"] = resumed.to_dict()
    if rank == 1:
        with torch.no_grad():
            next(model.parameters()).mul_(2)
    found["differing"] = said(lambda: evaluated(model, None))
    if rank == 0:
        found["alone"] = evaluated(model, None, all_processes=False).to_dict()
    (output / f"{rank}.json").write_text(json.dumps(found))
