"""YAML and JSON of strangers: aliases, depth, size and long numbers are refused in a sentence, and quickly."""

import json
import re
from pathlib import Path

import pytest
from timing import fastest_of_three

import headedit
from headedit import HeadEditError
from headedit.cli.main import main
from headedit.data.records import read_records
from headedit.evaluation.tasks.task_files import read_task
from headedit.io.json import parse_json
from headedit.io.strict import read_assignments
from headedit.io.yaml import parse_yaml, read_yaml
from headedit.specs.schema import read_spec
from headedit.training.config import read_run
from headedit.training.sweep.config import SweepConfig, plan_sweep

PACKAGE = Path(headedit.__file__).parent


def bomb(levels, first="[x, x, x, x, x, x, x, x, x, x]"):
    """Aliases that stand for 10 to the power of ``levels`` words."""
    lines = [f"a0: &a0 {first}"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, levels)]
    return "\n".join(lines) + "\n"


BAD = {
    "aliases of 9 levels": (bomb(9), r"line \d: stands for more than 10,000 values with its aliases"),
    "aliases of 12 levels": (bomb(12), r"line \d: stands for more than 10,000 values with its aliases"),
    "merge keys": (
        "a0: &a0 {x: 1, y: 2}\n"
        + "".join(f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 10)}]}}\n" for i in range(1, 9)),
        r"line \d: stands for more than",
    ),
    "an alias of itself": ("a: &a [*a]", r"line 1: the alias \*a stands for something that contains it"),
    "an alias of nothing": ("a: *b", "found undefined alias"),
    "lists of 100,000 levels": ("[" * 100_000, "nested more than 50 levels deep"),
    "mappings of 60,000 levels": ("{a: " * 60_000, "nested more than 50 levels deep"),
    "blocks of 100,000 levels": ("- " * 100_000, "nested more than 50 levels deep"),
    "a long list": ("a: [" + "1," * 60_000 + "1]", "stands for more than 10,000 values"),
    "a long text": ("a: " + "x" * 300_000, "has more than 262,144 bytes"),
    "a long number": ("a: " + "1" * 5000, r"the number 111111111111… is too long"),
    "a number of minutes": ("a: 1" + ":1" * 50_000, "is too long"),
    "a tag that does not fit": ("a: !!timestamp x", "not valid YAML"),
    "another tag that does not fit": ("a: !!bool x", "not valid YAML"),
    "an empty number": ("a: !!int ''", "not valid YAML"),
    "an object of Python": ("a: !!python/object/apply:os.system [ls]", "could not determine a constructor"),
    "half of a pair": ('a: "\\ud83d"', "half of a surrogate pair"),
    "a NUL": ('a: "\\0"', "holds a NUL"),
}
READERS = {
    "a spec": read_spec,
    "a run": read_run,
    "a sweep": SweepConfig.read,
    "a task": read_task,
    "YAML": read_yaml,
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("name", BAD)
def test_a_yaml_file_is_refused_within_a_second_for(name, reader, tmp_path):
    text, message = BAD[name]
    file = tmp_path / "bad.yaml"
    file.write_text(text)

    def refused():
        with pytest.raises(HeadEditError, match=rf"bad\.yaml: .*{message}") as caught:
            READERS[reader](file)
        assert len(str(caught.value)) < 1000

    assert fastest_of_three(refused) < 1.0


@pytest.mark.parametrize("name", [name for name in BAD if name != "a long text"])
def test_a_setting_of_a_command_is_refused_within_a_second_for(name):
    text = BAD[name][0].replace("a: ", "", 1)

    def refused():
        with pytest.raises(HeadEditError, match="cannot be read as a value"):
            read_assignments([f"epochs={text}"])

    assert fastest_of_three(refused) < 1.0


def test_aliases_that_repeat_little_are_read():
    text = "base: &base {a: 1, b: [x, y]}\none: {<<: *base, b: z}\ntwo: *base\nthree: [*base, *base]\n"
    base = {"a": 1, "b": ["x", "y"]}
    assert parse_yaml(text, "here") == {"base": base, "one": {"a": 1, "b": "z"}, "two": base, "three": [base, base]}


def test_the_command_ends_with_exit_code_2_for_aliases(tmp_path, capsys):
    (tmp_path / "task.yaml").write_text("prompt: p\nanswer: a\n" + bomb(9))
    with pytest.raises(SystemExit) as caught:
        main(["eval", "--model", "nowhere", "--tasks", str(tmp_path / "task.yaml")])
    assert caught.value.code == 2
    assert "stands for more than 10,000 values" in " ".join(capsys.readouterr().err.split())


def test_all_yaml_is_read_by_one_reader():
    for file in PACKAGE.rglob("*.py"):
        calls = re.findall(r"yaml\.(?:safe_|full_|unsafe_)?(?:load|parse|compose|scan)\w*\(", file.read_text())
        assert not calls or file == PACKAGE / "io" / "yaml.py", file


def test_a_sweep_of_more_runs_than_anyone_means_to_start_is_refused(tmp_path):
    fields = "\n".join(f"  training.f{i}: [{', '.join(map(str, range(10)))}]" for i in range(12))
    (tmp_path / "sweep.yaml").write_text(f"base: cpu-small\noutput: out\nfields:\n{fields}\n")
    with pytest.raises(HeadEditError, match="has 1,000,000,000,000 runs"):
        plan_sweep(SweepConfig.read(tmp_path / "sweep.yaml"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000, "nested too deeply"),
        ('{"a":' * 100_000, "nested too deeply"),
        ("[" * 101 + "]" * 101, "nested too deeply, more than 100 levels"),
        ('{"a": ' * 500 + "1" + "}" * 500, "nested too deeply"),
        ("[" + "9" * 5000 + "]", "not valid JSON"),
        ("[1,]", "not valid JSON"),
    ],
)
def test_json_that_is_too_deep_or_long_is_refused(text, message, tmp_path):
    with pytest.raises(HeadEditError, match=f"here: .*{message}"):
        parse_json(text, "here")
    for name, content in (("d.jsonl", '{"prompt": ' + text), ("d.json", "[" + text), ("e.json", text)):
        (tmp_path / name).write_text(content)
        with pytest.raises(HeadEditError):
            read_records(tmp_path / name)


def test_json_of_many_shallow_lists_is_read():
    rows = [{"a": [[i]]} for i in range(500)]
    assert parse_json(json.dumps(rows), "here") == rows
    assert parse_json("[" * 100 + "]" * 100, "here") is not None
