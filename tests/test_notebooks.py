"""The notebooks run, and still print what they are committed with."""

from pathlib import Path

import nbclient
import nbformat
import pytest

FOLDER = Path(__file__).resolve().parent.parent / "notebooks"


def printed(notebook) -> list[str]:
    """The text of every output, warnings aside."""
    outputs = [o for cell in notebook.cells for o in cell.get("outputs", []) if o.get("name") != "stderr"]
    return [o.get("text") or o["data"]["text/plain"] for o in outputs]


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.ipynb")), ids=lambda path: path.stem)
def test_a_notebook_runs_and_prints_what_it_shows(path, tmp_path):
    notebook = nbformat.read(path, as_version=4)
    shown = printed(notebook)
    client = nbclient.NotebookClient(
        notebook, timeout=120, kernel_name="python3", resources={"metadata": {"path": tmp_path}}
    )
    client.execute()
    assert printed(notebook) == shown
    assert shown
