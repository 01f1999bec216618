"""The notebooks run as they are committed, and the claims in their text hold."""

import os
import re
import textwrap
from pathlib import Path

import nbclient
import nbformat
import pytest
from nbformat.v4 import new_code_cell

FOLDER = Path(__file__).resolve().parent.parent / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
ON_A_REAL_MODEL = {"07_a_real_model": ("HEADEDIT_REAL_MODEL", "HEADEDIT_REAL_DATA")}
"""Notebooks that need a pretrained model and data, and the variables that say where these are."""

CLAIMS = {
    "01_quick_start": """
        assert report.base_accuracy < 0.1 and report.accuracy > 0.9
        assert answer("? : h e a d s =") == "i f b e t"
        edits.detach()
        assert answer("? : h e a d s =") == "h e a d s"
    """,
    "02_reading_gate_heatmaps": """
        from headedit.interpret.head_map import HeadMap
        from headedit.runs.stability import expected_jaccard, jaccard

        assert report.base_accuracy < 0.2 and report.accuracy > 0.85
        losses = {level.gates: level.loss for level in run.path.levels}
        half = max(gates for gates in losses if gates <= run.path.chosen / 2)
        assert losses[half] > 1.4 * losses[run.path.chosen]
        names = ("reverse", "reverse, seed 1", "next")
        maps = [HeadMap.of(name).open_heads("attention") for name in names]
        found = [{tuple(head) for head in heads.nonzero().tolist()} for heads in maps]
        assert [len(heads) for heads in found] == [12, 12, 12]
        for a, b in ((0, 1), (0, 2), (1, 2)):
            assert jaccard(found[a], found[b]) > 1.5 * expected_jaccard(12, 12, 32)
    """,
    "04_do_these_heads_matter": """
        assert accuracy() > 0.85
        first, last = closed.values()
        assert first < accuracy() - 0.05 and last > accuracy() - 0.05
        assert effects.effects.max() > 0.03 and effects.effects.median() < 0.5 * effects.effects.max()
        assert loss < 0.3 * base_loss and alone < 0.6
        assert headedit.separation(table, "patch_edited") > 0.6 and headedit.separation(table, "probe_accuracy") < 0.3
        rho = headedit.agreement(table)["effect"]
        assert rho["integrated"] > 0.3
    """,
    "05_several_edits": """
        accuracy = dict(zip(dial, (found["reverse"] for found in turned)))
        assert accuracy[0] < 0.2 and accuracy[0.75] > 0.85 and accuracy[1] > 0.9 and accuracy[2] < 0.8
        assert mixed[0]["reverse"] > 0.9 and mixed[-1]["next"] > 0.9 and max(mixed[3].values()) < 0.6
        answers = tokenizer.batch_decode(out[:, ids["input_ids"].shape[1] :], skip_special_tokens=True)
        assert answers == ["k m f h", "i g n l", "f h k m"]
    """,
    "06_merge_and_ship": """
        assert tokenizer.decode(out[0, ids["input_ids"].shape[1] :], skip_special_tokens=True) == "k m f h"
        assert type(merged).__name__ == "LlamaForCausalLM" and shipped.strip() == "? : h f m k = k m f h"
        assert difference < 1e-4
    """,
    "07_a_real_model": """
        assert after.score.value > base.score.value + 0.3 and after.test.p < 1e-6
        assert edits.count_open()["any"][0] <= 96 and len(by_size) > 0
        assert abs(report.score.value - after.score.value) <= 0.01
    """,
}
"""By notebook: the claims that its text makes of its numbers, which differ a little between machines."""

SAME_EVERYWHERE = {"03_adding_an_architecture"}
"""Notebooks that train nothing, and so print the same everywhere."""


def is_progress(output) -> bool:
    """Whether it is a progress bar: a widget where ipywidgets is installed, else text on stderr, as warnings are."""
    return output.get("name") == "stderr" or "application/vnd.jupyter.widget-view+json" in output.get("data", ())


def printed(notebook) -> list[str]:
    """The text of every output, warnings and progress aside."""
    outputs = [o for cell in notebook.cells for o in cell.get("outputs", []) if not is_progress(o)]
    return [o.get("text") or o["data"]["text/plain"] for o in outputs]


def forms(notebook) -> list[tuple[bool, list[list[str]]]]:
    """Of every cell: whether it prints, and the forms of what it displays, progress aside."""
    found = []
    for cell in notebook.cells:
        outputs = [output for output in cell.get("outputs", []) if not is_progress(output)]
        found.append(
            (any(o.get("name") == "stdout" for o in outputs), [sorted(o.data) for o in outputs if "data" in o])
        )
    return found


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_and_its_claims_hold(path, tmp_path, monkeypatch):
    missing = [name for name in ON_A_REAL_MODEL.get(path.stem, ()) if name not in os.environ]
    if missing:
        pytest.skip(f"needs {' and '.join(missing)}, the folders of a pretrained model and of data")
    if path.stem not in ON_A_REAL_MODEL:
        monkeypatch.setenv("OMP_NUM_THREADS", "1")  # on busy cores threads of a small model wait for each other
    notebook = nbformat.read(path, as_version=4)
    shown, kinds = printed(notebook), forms(notebook)
    if path.stem not in SAME_EVERYWHERE:
        notebook.cells.append(new_code_cell(textwrap.dedent(CLAIMS[path.stem])))
        kinds.append((False, []))
    seconds = 1800 if path.stem in ON_A_REAL_MODEL else 120
    client = nbclient.NotebookClient(
        notebook,
        timeout=seconds,
        kernel_name="python3",
        coalesce_streams=True,
        resources={"metadata": {"path": tmp_path}},
    )
    client.execute()
    assert forms(notebook) == kinds
    if path.stem in SAME_EVERYWHERE:
        assert shown
        assert printed(notebook) == shown


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_committed_notebook_is_complete_small_and_free_of_local_paths(path):
    text = path.read_text(encoding="utf-8")
    notebook = nbformat.reads(text, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    outputs = [o for cell in code for o in cell.outputs]
    assert all(o.output_type != "error" and not is_progress(o) for o in outputs)
    assert len(text) < 400_000
    assert not re.search(r"/(tmp|home|root|Users|usr|work)/", "".join(map(str, outputs)))
