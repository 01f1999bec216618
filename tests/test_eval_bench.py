"""``headedit bench evaluation``: the harness gives the same answers, or is left out with its reason."""

import json

import pytest
from typer.testing import CliRunner

from headedit import HeadEditError
from headedit.cli import bench
from headedit.demo import MODEL_FOLDER, tasks

TASK = """
name: order
prompt: "{{ prompt }}"
options: options
answer: right
labels: text
template: plain
scoring: loglikelihood
num_beams: 1
max_new_tokens: 12
"""


@pytest.fixture
def files(tmp_path):
    """A task of two orders of the same words, and its records."""
    found = [(row["prompt"], row["response"]) for row in tasks.records("copy", 6, cued=False, seed=0)]
    rows = [{"prompt": p, "right": r, "options": [r, " " + " ".join(reversed(r.split()))]} for p, r in found]
    rows = [row for row in rows if len(set(row["options"])) == 2]
    assert len(rows) > 2
    (tmp_path / "task.yaml").write_text(TASK)
    (tmp_path / "data.json").write_text(json.dumps(rows))
    return tmp_path


def run(folder, *options):
    arguments = ["evaluation", str(MODEL_FOLDER), str(folder / "task.yaml"), "--data", str(folder / "data.json")]
    arguments += ["--repeats", "1", "--output", str(folder), *options]
    return CliRunner().invoke(bench.app, arguments, catch_exceptions=False).stdout


@pytest.mark.parametrize("scoring", ["loglikelihood", "generation"])
def test_both_systems_are_timed_and_agree(files, scoring):
    pytest.importorskip("lm_eval")
    run(files, "--scoring", scoring, "--peer-batch-sizes", "2,4")
    result = json.loads((files / f"evaluation-{scoring}.json").read_text())
    assert [(row["system"], row["batch size"]) for row in result["rows"]] == [
        ("headedit", 32), ("lm-evaluation-harness", 2), ("lm-evaluation-harness", 4)
    ]  # fmt: skip
    assert [row["same answers"] for row in result["rows"]] == [1.0] * 3
    assert all(row["times headedit's"] > 0 for row in result["rows"][1:])
    if scoring == "loglikelihood":
        assert max(row["largest difference, nats"] for row in result["rows"]) < 1e-3


def test_without_the_harness_headedit_is_timed_alone(files, monkeypatch):
    def missing(name, purpose):
        raise HeadEditError(f"{purpose} needs the package lm_eval: pip install lm_eval.")

    monkeypatch.setattr("headedit.bench.evaluation.peer.import_optional", missing)
    printed = " ".join(run(files).split())
    assert "lm-evaluation-harness was left out: The comparison needs the package lm_eval" in printed
    assert len(json.loads((files / "evaluation-loglikelihood.json").read_text())["rows"]) == 1


def test_a_batch_size_of_none_is_refused(files):
    with pytest.raises(HeadEditError, match="--peer-batch-sizes: found '0'"):
        run(files, "--peer-batch-sizes", "0")
