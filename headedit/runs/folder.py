"""The folder of a run: whether the run in it was stopped or is finished, and what headedit wrote there."""

import contextlib
import json
import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from headedit.edits.files.card import is_ours
from headedit.errors import HeadEditError
from headedit.runs import files

FolderState = Literal["new", "stopped", "finished", "edits"]
"""``stopped``: there are results to resume from; ``edits``: there are edits that belong to no run."""

CHECKPOINTS = "checkpoints"
"""Name of the folder of checkpoints and of the journal, inside the folder of a run."""
JOURNAL = "journal"
"""Name of the folder of the journal, inside that of the checkpoints."""
LOGS = "logs"
"""Name of the folder of the trackers' logs, inside the folder of a run."""
CONTROLS = "controls"
"""Name of the folder of the controls' runs, inside the folder of a run."""
OWNER_FILE = "headedit.json"
"""In a folder of checkpoints: it marks the folder as headedit's own."""
DATE = "date"
"""Among what a run depends on: the date that the chat template was given."""
JOURNAL_FILE = "run.json"
"""In the journal: hashes of everything that the run's result depends on."""

_PLAIN = (
    files.EDITS_CONFIG_FILE,
    files.EDITS_TENSOR_FILE,
    files.OTHER_WEIGHTS_FILE,
    files.HISTORY_FILE,
    files.PATH_FILE,
    files.PATH_TENSOR_FILE,
    files.DATA_FILE,
    files.RUN_YAML,
    files.GATES_PLOT,
    files.HISTORY_PLOT,
    files.PATH_PLOT,
    files.SELECTION_PLOT,
    files.REPORT_FILE,
)
_STAGE = re.compile(r"\d\d-.+")
_SEED = re.compile(r"seed-\d+")
_WEIGHTS = ("model*.safetensors", "pytorch_model*.bin", "model.safetensors.index.json")


def folder_state(folder: Path) -> FolderState:
    """What a folder holds."""
    journal = folder / CHECKPOINTS / JOURNAL
    if (journal / JOURNAL_FILE).is_file():
        done = any(file.name != JOURNAL_FILE for file in journal.glob("*.json"))
        begun = any((folder / CHECKPOINTS).glob("*/checkpoint-*/headedit_checkpoint.json"))
        if done or begun:
            return "stopped"
    elif is_record(folder / files.RUN_FILE):
        return "finished"
    return "edits" if (folder / files.EDITS_TENSOR_FILE).is_file() else "new"


def run_date(folder: Path) -> str | None:
    """The date that the chat template was given in the run in a folder; None where it asked for none, or there is none.

    A run that was stopped has it in its journal, a finished one in its record.
    """
    journal = folder / CHECKPOINTS / JOURNAL / JOURNAL_FILE
    try:
        found = json.loads((journal if journal.is_file() else folder / files.RUN_FILE).read_text(encoding="utf-8"))
        identity = found if journal.is_file() else found["identity"]
        return str(identity[DATE])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def is_record(file: Path) -> bool:
    """Whether a file is the record of a run, and not some other JSON of the same name."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(found, dict) and {"recipe", "kept_step"} <= found.keys()


def check_output(folder: Path, *, resume: bool, overwrite: bool, base: Any = None) -> None:
    """Checks that training into a folder destroys nothing.

    Args:
        folder: the output folder.
        resume: whether the run in it is to be resumed.
        overwrite: whether the run in it is to be removed.
        base: name or folder of the base model.

    Raises:
        HeadEditError: the folder holds a run or edits that would be lost, a model, or files of the same names that
            headedit did not write.
    """
    if resume and overwrite:
        raise HeadEditError("resume and overwrite: give one of the two; a run is resumed, or removed and begun again.")
    if _is_model(folder, base):
        raise HeadEditError(f"{folder}: holds the base model; choose another output folder for the edits.")
    check_own_checkpoints(folder / CHECKPOINTS)
    if (folder / files.RUN_FILE).exists() and not is_record(folder / files.RUN_FILE):
        raise HeadEditError(
            f"{folder / files.RUN_FILE}: is not the record of a run, and would be replaced by one. Choose another "
            "output folder."
        )
    state = folder_state(folder)
    if overwrite or state == "new" or (resume and state in ("stopped", "finished")):
        return
    if resume and (folder / CHECKPOINTS / JOURNAL / JOURNAL_FILE).is_file():
        return  # the run stopped before its first checkpoint, and what it saved are its own edits
    found = {
        "finished": "holds a finished run",
        "stopped": "holds a run that was stopped; continue it with resume=True, or --resume",
        "edits": "holds edits",
    }[state]
    raise HeadEditError(
        f"{folder}: {found}. Choose another output folder; or overwrite=True, or --overwrite, removes what is there "
        "first."
    )


def check_outputs(folders: Iterable[Path], *, resume: bool, overwrite: bool, base: Any = None) -> None:
    """Checks that training into some folders destroys nothing; see ``check_output``."""
    for folder in folders:
        check_output(folder, resume=resume, overwrite=overwrite, base=base)


def check_own_checkpoints(folder: Path) -> None:
    """Raises a HeadEditError if a folder of checkpoints has files and headedit did not make it."""
    if folder.is_dir() and not is_own(folder) and any(not p.name.endswith(".headedit-tmp") for p in folder.iterdir()):
        raise HeadEditError(
            f"{folder}: holds files that headedit did not write, and a run keeps its own there. Choose another output "
            "folder, or rename this one."
        )


def is_own(checkpoints: Path) -> bool:
    """Whether headedit made this folder of checkpoints."""
    return (checkpoints / OWNER_FILE).is_file() or (checkpoints / JOURNAL / JOURNAL_FILE).is_file()


def remove_checkpoints(folder: Path) -> None:
    """Removes journal and checkpoints of a run, and their folder if nothing else is in it."""
    if not is_own(folder):
        remove_if_empty(folder)
        return
    (folder / JOURNAL / JOURNAL_FILE).unlink(missing_ok=True)  # without it there is nothing to resume
    for path in list(folder.iterdir()):
        if path.is_dir() and (path.name == JOURNAL or _STAGE.fullmatch(path.name)):
            shutil.rmtree(path, ignore_errors=True)
    if {path.name for path in folder.iterdir()} <= {OWNER_FILE}:
        (folder / OWNER_FILE).unlink(missing_ok=True)
        remove_if_empty(folder)


def remove_run(folder: Path) -> None:
    """Removes everything that headedit wrote into the folder of a run, and nothing else.

    A folder that holds no run is left as it is, with the runs in its folders.
    """
    if folder_state(folder) != "new" or is_own(folder / CHECKPOINTS):
        _remove(folder)


def _remove(folder: Path) -> None:
    if is_record(folder / files.RUN_FILE):
        (folder / files.RUN_FILE).unlink()  # first: without it the run is not taken for a finished one
    for name in _PLAIN:
        (folder / name).unlink(missing_ok=True)
    card = folder / files.README_FILE
    if card.is_file() and is_ours(card):
        card.unlink()
    runs = [path for path in (folder.iterdir() if folder.is_dir() else ()) if _SEED.fullmatch(path.name)]
    for run in [*runs, *(folder / CONTROLS).glob("*")]:
        if run.is_dir():
            _remove(run)
            remove_if_empty(run)
    for log in (folder / LOGS).glob("*"):
        if _STAGE.fullmatch(log.name):
            shutil.rmtree(log, ignore_errors=True)
    for name in (LOGS, CONTROLS):
        remove_if_empty(folder / name)
    remove_checkpoints(folder / CHECKPOINTS)


def remove_if_empty(folder: Path) -> None:
    """Removes a folder that has nothing in it."""
    with contextlib.suppress(OSError):
        folder.rmdir()


def _is_model(folder: Path, base: Any) -> bool:
    """Whether a folder holds the weights of a model, or is the one that the base model was loaded from."""
    if isinstance(base, str) and base and Path(base).is_dir() and folder.is_dir() and Path(base).samefile(folder):
        return True
    return (folder / "config.json").is_file() and any(any(folder.glob(pattern)) for pattern in _WEIGHTS)
