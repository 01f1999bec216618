"""Output in a narrow terminal: lines are wrapped, and no number is cut."""

import io
import re
import shlex
import sys

import pytest
from command_lines import commands, parse
from rich.console import Console
from rich.text import Text

from headedit.cli import shared
from headedit.cli.help import plain_help
from headedit.cli.main import main
from headedit.demo import MODEL_FOLDER
from headedit.io.tables import rich_table
from headedit.io.wrapping import least_width, wrap, wrap_command

NUMBER = re.compile(r"\d[\d,.]*\d(?:e[-+]\d+)?|\d")


def printed(table, width):
    console = Console(width=width, file=io.StringIO(), color_system=None)
    console.print(table)
    return console.file.getvalue()


@pytest.mark.parametrize("width", [20, 33, 60])
def test_wrapped_text_has_every_number_whole(width):
    text = "12.345 GiB of 24.000 GiB, 13,245,678 in total, at 1.5e-05 in /tmp/some/very/long/path/with_parts/x-12.json"
    lines = wrap(text, width).split("\n")
    assert max(map(len, lines)) <= width
    assert "".join("".join(lines).split()) == "".join(text.split())
    assert NUMBER.findall("\n".join(lines)) == NUMBER.findall(text)


def test_a_number_wider_than_the_line_is_not_cut():
    assert wrap("all 13,245,678,901 parameters", 8).split("\n") == ["all", "13,245,678,901", "paramete", "rs"]
    assert least_width("1.5e-05 abc") == 7


@pytest.mark.parametrize("framed", [True, False])
@pytest.mark.parametrize("width", [16, 30, 45, 60, 80, 200])
def test_a_table_of_any_width_has_every_number_whole(width, framed):
    cells = ["1,234,567", "81.20 [78.70, 83.50]", "12.30 ± 0.05", "1.2e-05", "0.1234"]
    rows = [[f"exact match {i}", *cells, Text("3.141592", style="red")] for i in range(3)]
    header = ["task", "parameters", "model", "base", "p", "constant", "ratio"]
    text = printed(rich_table("A title", header, rows, framed=framed), width)
    assert max(len(line.rstrip()) for line in text.split("\n")) <= width
    for cell in ("1,234,567", "81.20", "78.70", "83.50", "12.30", "0.05", "1.2e-05", "0.1234", "3.141592"):
        assert len(re.findall(rf"(?<![\d.,]){re.escape(cell)}(?![\d])", text)) == 3, (cell, text)


def test_a_long_command_stays_one_command_for_a_shell():
    command = "headedit eval --model './my model' --edits out/with/a/long/name --data test.jsonl --dtype float32"
    lines = wrap_command("next: ", command, 40).split("\n")
    assert max(map(len, lines)) <= 40
    assert all(line.endswith(" \\") for line in lines[1:-1])
    assert shlex.split("\n".join(lines[1:]).replace("\\\n", "")) == shlex.split(command)
    assert wrap_command("next: ", "headedit plot out", 40) == "next: headedit plot out"


def test_messages_of_60_columns_are_wrapped_and_their_commands_stay_whole(monkeypatch, capsys):
    message = f"stopped; 12 of {10**9:,} runs are finished, and the table of those is in the folder out/of/the/sweep."
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    shared.tell_error(f"{message}\nTo continue: headedit sweep {'--set a=1 ' * 10}")
    lines = capsys.readouterr().err.rstrip("\n").split("\n")
    assert max(map(len, lines)) <= 60
    assert " ".join(lines[: lines.index("To continue:")]) == message
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False)
    shared.tell_error(message)
    assert capsys.readouterr().err == f"{message}\n"


def test_help_at_60_columns_has_every_name_whole_and_examples_that_are_one_command():
    for words, command in commands():
        context = command.make_context(words, [], resilient_parsing=True)
        text = plain_help(command, context, 60)
        assert max(map(len, text.split("\n"))) <= 60, words
        assert "..." not in text.partition("\n\n")[2].replace("FILES...", ""), words
        for name in [name for option in command.params for name in option.opts if name.startswith("-")]:
            assert re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", text), (words, name)
        for name in getattr(command, "commands", {}):
            assert re.search(rf"^  {name} ", text, re.MULTILINE), (words, name)
        examples = re.findall(r"Example:\s+((?:torchrun .*?)?headedit(?:.*\\\n)*.*)", text)
        assert len(examples) == (command.help or "").count("Example: `"), words
        for example in examples:
            if example.startswith("headedit "):
                assert parse(example.replace("\\\n", " ")) == words


def test_a_row_of_tall_cells_is_a_list():
    ours = "training.per_device_train_batch_size: 8, training.gradient_accumulation_steps: 4"
    rows = [["training_config.per_device_train_batch_size", "8", ours, "a remark"]]
    text = printed(rich_table("keys", ["theirs", "value", "ours", ""], rows, left=None), 44)
    assert re.findall(r"^ *(\w+):(?=\s)", text, re.MULTILINE)[:3] == ["theirs", "value", "ours"]


def test_a_title_is_as_wide_as_the_terminal_and_not_as_its_table():
    lines = printed(rich_table("A title of many words above a table", ["a", "b"], [["1", "2"]]), 60).split("\n")
    assert lines[0].rstrip() == "A title of many words above a table"


def test_a_command_at_60_columns_cuts_no_number(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setattr(shared.console, "_environ", {"COLUMNS": "60"})
    monkeypatch.setattr(shared.console, "_width", 60)
    monkeypatch.setattr(shared.console, "_force_terminal", True)
    monkeypatch.setattr(shared.console, "_color_system", None)
    with pytest.raises(SystemExit, match="0"):
        main(["plan", "--model", str(MODEL_FOLDER), "--max-length", "4096", "--device", "cpu", "--memory", "1.25GiB"])
    lines = capsys.readouterr().out.split("\n")
    assert max(map(len, lines)) <= 60
    assert all("…" not in line for line in lines)
