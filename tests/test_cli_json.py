"""``--json``: the result of a command alone on stdout, as JSON that any reader takes."""

import json

import pytest

from headedit.cli.json_output import put_json, takes_json
from headedit.cli.main import main
from headedit.demo import MODEL_FOLDER, tasks

MODEL = str(MODEL_FOLDER)


def result(capsys, *arguments, code=0):
    """What a command called with ``--json`` prints on stdout, and the text that it prints on stderr."""
    with pytest.raises(SystemExit) as caught:
        main([*map(str, arguments), "--json"])
    printed = capsys.readouterr()
    assert caught.value.code == code, printed.err

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(printed.out, parse_constant=refuse), printed.err


@pytest.fixture
def data(tmp_path):
    rows = tasks.records("copy", 16, cued=True, seed=0)
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path / "data.jsonl"


def test_doctor_prints_what_attach_would_change_as_json(capsys):
    found, told = result(capsys, "doctor", MODEL, "--device", "cpu")
    assert found["model"] == MODEL
    assert found["heads"] == [[8, 16]]
    assert found["edited_layers"] == found["layers"] == 4
    assert found["will_not_work"] == []
    assert "attach would edit" in told


def test_plan_prints_bytes_and_changes_as_json(capsys):
    found, told = result(capsys, "plan", "--model", MODEL, "--max-length", 16, "--memory", "2KiB", "--device", "cpu")
    assert (found["memory"], found["verdict"]) == (2048, "does not fit")
    assert found["total"] > 2048
    assert all(change["total"] > 0 for change in found["changes"])
    assert "does not fit" in told


def test_spec_check_prints_its_certificate_as_json(capsys):
    found, told = result(capsys, "spec", "check", "llama")
    assert (found["ok"], found["verdict"]) == (True, "The spec holds.")
    assert {site["kind"] for site in found["sites"]} == {"attention"}
    assert all(site["ok"] and site["proved_under"] for site in found["sites"])
    assert "The spec holds." in told


def test_train_and_eval_print_their_summaries_as_json(capsys, data, tmp_path):
    quick = ["--recipe", "jola", "--set", "epochs=1", "--device", "cpu"]
    run, told = result(capsys, "train", "-m", MODEL, "-d", data, "-o", tmp_path / "out", *quick, code=0)
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert run["steps"] == record["steps"]
    assert run["output"] == str(tmp_path / "out")
    assert run["next"].startswith("headedit eval ")
    assert "trainable params" in told

    figures, told = result(capsys, "eval", "-m", MODEL, "-e", tmp_path / "out", "-d", data, "--device", "cpu")
    (report,) = figures["reports"]
    assert report["n"] == 16
    assert 0 <= report["score"]["value"] <= 1
    assert "constant" in told


def test_a_mistake_leaves_stdout_empty_with_json(capsys, tmp_path):
    with pytest.raises(SystemExit, match="2"):
        main(["doctor", str(tmp_path / "nothing"), "--json"])
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "No model could be loaded" in printed.err


def test_numbers_that_are_not_finite_are_null_in_json(capsys):
    @takes_json
    def command(*, as_json):
        print("a word")
        put_json({"loss": float("nan"), "bounds": (float("inf"), 1.5)})

    command(as_json=True)
    printed = capsys.readouterr()
    assert json.loads(printed.out) == {"loss": None, "bounds": [None, 1.5]}
    assert printed.err == "a word\n"
    command(as_json=False)
    assert capsys.readouterr().out == "a word\n"
