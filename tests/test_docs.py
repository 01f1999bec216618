"""The pages of docs/: what a reader pastes runs, page by page from top to bottom, and prints what the page shows.

Pages use a small model and small files, which stand here under the names that the pages give them. Training makes one
pass over the examples.
"""

import json
import re
import shlex
import shutil
from pathlib import Path

import matplotlib.pyplot as plt
import pytest
import yaml
from command_lines import commands, parse
from docs_pages import (
    FILES,
    NOT_RUN,
    OWN_TESTS,
    PAGES,
    README,
    ROOT,
    RUN,
    blocks_of,
    check_shown,
    command_lines,
    name_of,
    reason_not_to_run,
)

import headedit
from headedit.cli.main import main
from headedit.demo import MODEL_FOLDER, tasks
from headedit.training.recipes.stability_selection import rank
from headedit.training.recipes.stage import Stage

DOCS = [page for page in PAGES if page != README and name_of(page) not in OWN_TESTS]
MODELS = ("my-model", "MODEL", "model")
EDITS = ("out", "EDITS", "edits")
NAMES = {words for words, _ in commands()}
LEARNT_NOTHING = 3
INSTEAD = {
    "convert MODEL EDITS lora": "convert MODEL scales lora",
    "convert ./my-model out ./my-lora": "convert ./my-model scales ./my-lora",
    "convert MODEL EDITS edits.gguf": "convert MODEL offsets edits.gguf --approximate",
}
"""Commands for edits of one kind, or another model than the one that is here, and what is run instead."""

RUN_YAML = """
model: {name: ./my-model, device: cpu}
data: {train: train.jsonl}
recipe: {name: ungated}
output: by-file
"""

SMALLER = {"headedit report": "--limit 4 --model ./my-model", "headedit eval": "--limit 4"}
"""Options with which a command does less."""


@pytest.fixture(scope="module")
def shelf(tmp_path_factory):
    """A folder with the model, data and edits that the pages name."""
    folder = tmp_path_factory.mktemp("shelf")
    for name in MODELS:
        shutil.copytree(MODEL_FOLDER, folder / name)
    for seed, name in enumerate(("train", "valid", "test")):
        rows = tasks.records("next", 40, cued=False, seed=seed)
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (folder / "my_data").mkdir(exist_ok=True)
        more = tasks.records("next", 200, cued=False, seed=seed)  # compare-with-lora.md trains on so many
        (folder / "my_data" / f"{name}.json").write_text(json.dumps(more))
    (folder / "run.yaml").write_text(RUN_YAML)
    model = headedit.load_model(str(MODEL_FOLDER), device="cpu")
    edits = headedit.attach(model)
    rows = tasks.records("next", 16, cued=False, seed=0)
    with pytest.MonkeyPatch.context() as patch:
        shorten(patch)
        tokenizer = str(MODEL_FOLDER)
        headedit.fit(edits, rows, tokenizer=tokenizer, recipe="ungated", output_dir=folder / "out", progress=False)
    for name in EDITS[1:]:
        shutil.copytree(folder / "out", folder / name)
    for vectors, values in (("scale", {"scale": 0.5}), ("offset", {"offset": [0.1] * 16})):
        edits.detach()
        edits = headedit.attach(model, config=headedit.EditConfig(vectors=vectors, layers="1:"))
        edits.set_head(2, 5, **values)
        edits.save_pretrained(folder / f"{vectors}s")
    return folder


def shorten(patch):
    """Makes every stage of a training one pass over its examples, and the ranking of heads on halves two steps."""
    whole = Stage.size
    patch.setattr(Stage, "size", lambda self, *given: (1, whole(self, *given)[1]))
    patch.setitem(rank.__kwdefaults__, "steps", 2)


def run_command(line: str, capsys) -> str:
    """Runs a command line of headedit in this process, and returns what it printed."""
    line, _, file = line.partition(" > ")
    for given, other in INSTEAD.items():
        line = line.replace(given, other)
    for start, options in SMALLER.items():
        line += f" {options}" if line.startswith(start) and options.split()[0] not in line else ""
    words = shlex.split(line)
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main(words[words.index("headedit") + 1 :])
    printed = capsys.readouterr()
    learnt_nothing = " train " in line and ended.value.code == LEARNT_NOTHING
    assert ended.value.code in (0, None) or learnt_nothing, f"{line}\n{printed.out}{printed.err}"
    if file:
        Path(file.strip()).write_text(printed.out)
    return printed.out


@pytest.mark.parametrize("page", DOCS, ids=name_of)
def test_a_page_runs_from_top_to_bottom(page, shelf, tmp_path, monkeypatch, capsys):
    blocks = blocks_of(page.read_text())
    if not any(block.language in RUN for block in blocks):
        return
    shutil.copytree(shelf, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    shorten(monkeypatch)
    names: dict[str, object] = {"__name__": "__main__"}
    printed, done = None, set()
    for block in blocks:
        if block.language == "text" and printed is not None:
            check_shown(block.code, printed)
        printed = None
        if block.title and block.language in FILES:
            Path(block.title).write_text(block.code)
        elif block.language == "python" and not reason_not_to_run(block.code):
            capsys.readouterr()
            exec(compile("\n" * (block.line - 1) + block.code, f"<{name_of(page)}>", "exec"), names)
            printed = capsys.readouterr().out
        elif block.language == "bash":
            lines = [line for line in command_lines(block.code) if not reason_not_to_run(line)]
            printed = "".join(run_command(line, capsys) for line in lines if line not in done)
            done |= {*lines}
    plt.close("all")


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_block_has_a_language_that_says_what_is_done_with_it(page):
    found = {(block.language, block.line) for block in blocks_of(page.read_text())}
    assert [line for language, line in sorted(found) if language not in (*RUN, *FILES, "text", "bibtex")] == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_command_line_is_run_or_has_a_reason_and_parses(page):
    blocks = [block for block in blocks_of(page.read_text()) if block.language == "bash"]
    for line in (line for block in blocks for line in command_lines(block.code)):
        words = line.split()
        assert words[0] == "headedit" or reason_not_to_run(line), line
        if words[0] == "headedit":
            assert line.startswith(f"headedit {parse(line)}".strip())
        if words[0] == "make":
            assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), flags=re.MULTILINE), line


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_command_in_a_sentence_parses(page):
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    for line in (" ".join(code.split()) for code in re.findall(r"`(headedit [^`|…]+)`", text)):
        assert line.removeprefix("headedit ") in NAMES or parse(line) in line


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_file_of_a_page_can_be_read(page):
    for block in blocks_of(page.read_text()):
        if block.language == "yaml":
            assert yaml.safe_load(block.code)
        if block.language == "json":
            lines = block.code.splitlines() if block.title.endswith(".jsonl") else [block.code]
            assert all(json.loads(line) for line in lines)


EXAMPLES = [
    (words, line) for words, command in commands() for line in re.findall(r"Example: `([^`]+)`", command.help or "")
]
"""What the help of each command gives as an example, and the reference shows."""


@pytest.mark.parametrize(("words", "line"), EXAMPLES, ids=[words for words, _ in EXAMPLES])
def test_the_example_in_the_help_of_a_command_runs(words, line, shelf, tmp_path, monkeypatch, capsys):
    if reason_not_to_run(line):
        return
    shutil.copytree(shelf, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    shorten(monkeypatch)
    if "--output out" in line:
        shutil.rmtree("out")
    run_command(line, capsys)


def test_every_command_has_an_example_that_is_run_or_has_a_reason():
    alone = {words for words in NAMES if not any(other.startswith(f"{words} ".lstrip()) for other in NAMES - {words})}
    assert alone <= {words for words, _ in EXAMPLES}


def test_every_reason_not_to_run_something_is_needed():
    blocks = [block for page in PAGES for block in blocks_of(page.read_text())]
    lines = [line for _, line in EXAMPLES]
    lines += [line for block in blocks if block.language == "bash" for line in command_lines(block.code)]
    lines += [block.code for block in blocks if block.language == "python"]
    assert [pattern for pattern in NOT_RUN if not any(re.match(pattern, line) for line in lines)] == []


def test_a_line_that_was_not_printed_is_noticed():
    check_shown("a 1\n…\nc", "a 2.5\nb\nc\n")
    for shown in ("a\nd", "c\na 1"):
        with pytest.raises(AssertionError, match="not printed"):
            check_shown(shown, "a 2.5\nb\nc\n")
