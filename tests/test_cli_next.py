"""A command that is finished says what to do next, in a command that parses."""

import json
from itertools import pairwise

import pytest
from command_lines import parse

from headedit.cli.main import main
from headedit.cli.next_step import print_next
from headedit.demo import MODEL_FOLDER, tasks

MODEL = str(MODEL_FOLDER)
SMALL = ["--max-length", "16", "--device", "cpu"]


def last_line(capsys, *arguments):
    with pytest.raises(SystemExit, match="0"):
        main(list(map(str, arguments)))
    return capsys.readouterr().out.rstrip("\n").split("\n")[-1]


@pytest.mark.parametrize(
    ("arguments", "called"),
    [
        (["doctor", MODEL, "--device", "cpu"], "train"),
        (["plan", "--model", MODEL, *SMALL, "--memory", "64GiB"], "train"),
        (["plan", "cpu-small", "--set", f"model.name={MODEL}", *SMALL, "--memory", "1KiB"], "plan"),
        (["config", "list"], "config show"),
        (["spec", "check", "llama"], "train"),
    ],
    ids=lambda value: " ".join(value[:2]) if isinstance(value, list) else value,
)
def test_a_finished_command_ends_with_the_next_one(arguments, called, capsys):
    line = last_line(capsys, *arguments)
    assert line.startswith("next: headedit ")
    assert parse(line.removeprefix("next: ")) == called


@pytest.mark.parametrize(("memory", "called"), [("64GiB", "train"), ("1KiB", "plan")])
def test_the_command_after_a_plan_is_that_of_the_run_that_was_planned(memory, called, capsys):
    changed = ["--batch-size", "2", "--checkpointing", "--dtype", "float32", "--set", "recipe.epochs=3"]
    expected = ["training.gradient_checkpointing=true", "recipe.batch_size=2", "model.dtype=float32", "recipe.epochs=3"]
    line = last_line(capsys, "plan", "cpu-small", "--model", MODEL, *SMALL, *changed, "--memory", memory)
    words = line.removeprefix("next: ").split()
    assert words[:3] == ["headedit", called, "cpu-small"]
    given = [setting for option, setting in pairwise(words) if option == "--set"]
    assert {*expected, f"model.name={MODEL}", "data.max_length=16"} == set(given)
    assert ("--device" in words) == (called == "plan")
    line = last_line(capsys, "plan", "--model", MODEL, *SMALL, *changed, "--memory", "64GiB")
    given = [setting for option, setting in pairwise(line.split()) if option == "--set"]
    assert {*expected, "data.max_length=16"} == set(given)


def test_an_evaluation_ends_with_the_table_of_its_reports_or_how_to_keep_them(capsys, tmp_path):
    rows = tasks.records("copy", 4, cued=True, seed=0)
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
    given = ["eval", "--model", MODEL, "--data", tmp_path / "data.jsonl", "--device", "cpu"]
    line = last_line(capsys, *given, "--output", tmp_path / "reports")
    assert line == f"next: headedit table {tmp_path / 'reports'}"
    assert "--output FOLDER" in last_line(capsys, *given)


def test_the_next_command_leaves_out_what_is_not_given_and_quotes_what_a_shell_would_split(capsys):
    print_next("plot", "my folder", None, remark="twice")
    assert capsys.readouterr().out == "next: headedit plot 'my folder'  (twice)\n"


def test_the_shell_is_given_the_completion_of_commands_and_options(monkeypatch, capsys):
    monkeypatch.setenv("_HEADEDIT_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", "headedit pl")
    monkeypatch.setenv("COMP_CWORD", "1")
    with pytest.raises(SystemExit):
        main([])
    assert capsys.readouterr().out.split() == ["plan", "plot"]
