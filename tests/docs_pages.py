"""The pages of the documentation as a reader would run them: their blocks of code, and what is not run, and why."""

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").rglob("*.md"))]

OWN_TESTS = {"docs/coming-from.md": "tests/test_coming_from.py", "docs/gallery.md": "tests/test_gallery.py"}
"""Pages whose blocks are run by a test of their own."""

RUN = ("python", "bash")
FILES = ("yaml", "json")
"""Blocks with a name in the line that opens them, as ``yaml title="run.yaml"``, or in a comment on the first line."""

NOT_RUN = {
    r"pip install ": "installs packages; tests/test_packaging.py checks what an install brings",
    r"make ": "sets up an environment; that the target exists is tested",
    r"headedit serve ": "starts a server of vLLM; `make test-serving` does",
    r"(vllm|transformers) serve |llama-server ": "starts a server of another project",
    r"curl ": "asks a server",
    r"python convert_\w+_to_gguf.py ": "belongs to llama.cpp, which is no Python package",
    r"(torchrun|accelerate launch) ": "starts several processes; tests/test_launchers.py and test_eval_processes.py do",
    r"headedit bench gpu": "needs a GPU and minutes; tests/test_bench_gpu.py runs its parts on a CPU",
    r"headedit bench( |$)": "takes minutes; tests/test_cost.py and tests/test_planted.py run small ones",
    r"headedit compare (?!.*--dry-run)": "trains every method; tests/test_compare.py runs it on a tiny model",
    r"headedit demo( |$)": "takes a minute or more; tests/test_demo.py runs it",
    r"headedit lm-eval ": "downloads its tasks; tests/test_eval_harness.py runs it on a task of its own",
    r"headedit (tune llama|dpo )": "downloads a model; tests/test_tune.py and tests/test_preferences.py run small ones",
    r"headedit import ": "reads files of other projects; tests/test_importing.py makes some",
    r"headedit sweep ": "makes several runs; tests/test_sweep.py runs small ones",
    r"headedit export mmlu_pro": "downloads its records; tests/test_cli.py exports others",
    r"headedit .*(--tasks arc_c|cpu-small|olmo2-13b)": "downloads a model or a data set",
    r"headedit table reports": "reads what the command before it writes; tests/test_eval_comparison.py does",
    r'import os\n\nos.environ\["HEADEDIT_EDITS"\]': "needs vLLM; tests/serving runs it",
}
"""Commands and blocks that no test of the pages runs: what their first line begins with, and why."""


@dataclass(frozen=True)
class Block:
    """A block of code of a page.

    Fields:
        language: what the line that opens it says, such as ``python``.
        title: the name of the file that it is; empty for none.
        code: its lines.
        line: the number of its first line on the page.
    """

    language: str
    title: str
    code: str
    line: int


def blocks_of(text: str) -> list[Block]:
    """The blocks of code of a page in Markdown, in their order."""
    found = []
    for match in re.finditer(r"^```(\w*)([^\n]*)\n(.*?)^```[ ]*$", text, flags=re.DOTALL | re.MULTILINE):
        language, options, code = match.groups()
        named = re.search(r'title="([^"]+)"', options) or re.match(r"# ([\w.-]+\.ya?ml)\n", code)
        line = text.count("\n", 0, match.start()) + 2
        found.append(Block(language, named[1] if named else "", code, line))
    return found


def command_lines(code: str) -> list[str]:
    """The commands of a block of the shell; one that ends in a backslash goes on in the next line."""
    lines = code.replace("\\\n", " ").splitlines()
    found = [re.sub(r"\s+#.*$", "", line).strip() for line in lines]
    return [" ".join(line.split()) for line in found if line and not line.startswith("#")]


def reason_not_to_run(code: str) -> str | None:
    """Why a command or a block of Python is not run; None where it is."""
    return next((reason for pattern, reason in NOT_RUN.items() if re.match(pattern, code)), None)


def name_of(page: Path) -> str:
    """The path of a page in the repository."""
    return str(page.relative_to(ROOT))


def without_numbers(text: str) -> list[str]:
    return [re.sub(r"[-+]?\d[\d,.]*(e[-+]?\d+)?", "#", line).rstrip() for line in text.splitlines()]


def check_shown(shown: str, printed: str) -> None:
    """Every line that a page shows was printed, in this order; numbers may differ, and ``…`` stands for more lines."""
    lines = iter(without_numbers(printed))
    for line in without_numbers(shown):
        if line and line != "…":
            assert line in lines, f"not printed: {line!r}\nprinted:\n{printed}"
