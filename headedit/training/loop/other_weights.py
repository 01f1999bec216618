"""Weights that are trained together with the edits, such as LoRA, a norm or a head: saved in a file of their own."""

from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from headedit.edits import HeadEdits
from headedit.errors import HeadEditError
from headedit.io.describe import first_names
from headedit.io.files import write_atomically
from headedit.runs.files import OTHER_WEIGHTS_FILE
from headedit.specs import MODULE_NAME


def other_weights(model: nn.Module, edits: HeadEdits) -> dict[str, nn.Parameter]:
    """The trainable parameters of a model that belong to no edit, by their names in the model."""
    ours = {id(parameter) for parameter in edits.model.get_submodule(MODULE_NAME).parameters()}
    return {name: p for name, p in model.named_parameters() if p.requires_grad and id(p) not in ours}


def save_weights(folder: Path, weights: Mapping[str, Tensor]) -> None:
    """Writes weights into a folder; without any, removes the file that an earlier training left there."""
    file = folder / OTHER_WEIGHTS_FILE
    if not weights:
        file.unlink(missing_ok=True)
        return
    tensors = {name: weight.detach().cpu().contiguous().clone() for name, weight in weights.items()}
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(file, safetensors.torch.save(tensors, metadata={"format": "pt"}))


@torch.no_grad()
def load_weights(folder: Path, weights: Mapping[str, Tensor]) -> None:
    """Sets weights to what ``save_weights`` wrote, in place.

    Raises:
        HeadEditError: the file holds other weights than these, or is damaged.
    """
    file = folder / OTHER_WEIGHTS_FILE
    try:
        saved = safetensors.torch.load(file.read_bytes()) if file.is_file() else {}
    except (OSError, SafetensorError) as error:
        raise HeadEditError(f"{file}: cannot be read ({error}).") from None
    missing, unexpected = weights.keys() - saved.keys(), saved.keys() - weights.keys()
    if missing:
        raise HeadEditError(
            f"{folder}: holds no values of {first_names(sorted(missing))}, which are trainable besides the edits. "
            "Freeze them (requires_grad_(False)), or continue from a checkpoint in which they were trained."
        )
    if unexpected:
        raise HeadEditError(
            f"{file}: holds {first_names(sorted(unexpected))}, which were trained besides the edits and are not "
            "trainable in this model. Prepare the model as it was when the training began, with the same weights "
            "trainable."
        )
    for name, weight in weights.items():
        if weight.shape != saved[name].shape:
            raise HeadEditError(
                f"{file}: {name} has the shape {list(saved[name].shape)}, expected {list(weight.shape)}."
            )
        weight.copy_(saved[name])


def refuse_other_weights(model: nn.Module, edits: HeadEdits, what: str, way_out: str) -> None:
    """Raises a HeadEditError with the names of trainable weights that are not edits.

    Args:
        model: the model.
        edits: the handle.
        what: what trains the edits alone, the subject of a sentence.
        way_out: what to do to train the other weights too, a sentence.
    """
    others = other_weights(model, edits)
    if others:
        raise HeadEditError(
            f"{what} trains and saves the edits alone, and {first_names(sorted(others))} of the model are trainable "
            f"too. Freeze these other weights first (requires_grad_(False)). {way_out}"
        )
