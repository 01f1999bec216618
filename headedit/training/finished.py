"""A run that is finished already, and so is not trained again when it is resumed."""

import logging
from pathlib import Path

from accelerate import PartialState

from headedit.edits import HeadEdits
from headedit.edits.files.storage import load_tensors
from headedit.runs.folder import CHECKPOINTS, remove_checkpoints
from headedit.runs.run import Run
from headedit.training.recipes.journal import check_same_run

logger = logging.getLogger(__name__)


def finished_run(edits: HeadEdits, folder: Path, identity: dict[str, str]) -> Run:
    """The run that is finished in a folder, with its edits on the model.

    Removes what is left of its checkpoints, where it was killed while it removed them.

    Raises:
        HeadEditError: it depends on something else than this one.
    """
    run = Run.read(folder)
    before = run.record.get("identity")
    check_same_run(folder, "finished", before if isinstance(before, dict) else {}, identity)
    load_tensors(edits, folder)
    if PartialState().is_main_process:
        remove_checkpoints(folder / CHECKPOINTS)
    logger.warning("%s: this run is finished already; nothing was trained.", folder)
    return Run(folder, run.history, run.record, edits)
