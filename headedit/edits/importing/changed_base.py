"""Writes a base model with the weights that another project's checkpoint has in place of its own."""

from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from headedit.edits.importing.base_weights import BaseComparison, base_of, base_tensors
from headedit.edits.importing.rotary import set_released_rotary
from headedit.errors import HeadEditError
from headedit.hf.config import text_config
from headedit.io.folders import whole_folder

_TOKENIZERS = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json")


@torch.no_grad()
def change_base(model: nn.Module, path: "str | PathLike[str]", comparison: BaseComparison) -> None:
    """Gives a base model the weights of a checkpoint that are not its own.

    The model becomes float32 where the checkpoint's weights have more digits than its dtype; it gets rows of new
    tokens, and an output head of its own where only the checkpoint has one.

    Args:
        model: the base model, without edits.
        path: the checkpoint.
        comparison: that of the two, see ``compare_base``.

    Raises:
        HeadEditError: a weight has another shape there, or a tensor there is no weight of the model.
    """
    base: Any = model
    wrong = [f"{weight.name} {weight}" for weight in comparison.moved if weight.reshaped]
    wrong += [f"the base has no {name}" for name in comparison.unknown]
    wrong += [f"{name} is quantized or not loaded" for name in comparison.unread]
    if wrong:
        more = f", and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        raise HeadEditError(
            f"{path}: the base cannot be written with the weights of this checkpoint: {wrong[0]}{more}. Import the "
            "edits without it, or give the base that they were trained on."
        )
    rows = {weight.shape[0] for weight in comparison.moved if weight.resized}
    if len(rows) > 1:
        raise HeadEditError(f"{path}: embedding and output head have {' and '.join(map(str, sorted(rows)))} rows.")
    if rows:
        base.resize_token_embeddings(rows.pop(), mean_resizing=False)
    if comparison.untied:
        head = base.get_output_embeddings()
        head.weight = nn.Parameter(head.weight.detach().clone(), requires_grad=head.weight.requires_grad)
        for config in (base.config, text_config(base)):
            config.tie_word_embeddings = False
    changed = {weight.name for weight in comparison.moved}
    found = {name: tensor for name, _, tensor in base_tensors(base_of(model), Path(path)) if name in changed}
    weights = base_of(model).weights
    if any(_rounds(tensor, weights[name].dtype) for name, tensor in found.items()):
        base.to(torch.float32)
        base.config.dtype = torch.float32
        weights = base_of(model).weights
    for name, tensor in found.items():
        weights[name].copy_(tensor)


def write_base(
    model: nn.Module, folder: "str | PathLike[str]", tokenizer: Any = None, *, released_rotary: bool = False
) -> None:
    """Writes a model and its tokenizer as a folder that ``AutoModelForCausalLM`` loads, complete or not at all.

    From then on the folder is the model's name, which edits on it are saved with.

    Args:
        model: the base model, without edits.
        folder: a new or empty folder.
        tokenizer: its tokenizer; None for none.
        released_rotary: write the config that gives what JoLA's released Llama class computes.

    Raises:
        HeadEditError: the folder cannot be written.
    """
    base: Any = model
    if released_rotary:
        set_released_rotary(model)
    with whole_folder(Path(folder), "the changed base") as scratch:
        base.save_pretrained(scratch)
        if tokenizer is not None:
            tokenizer.save_pretrained(scratch)
    base.config._name_or_path = str(folder)


def has_tokenizer(path: "str | PathLike[str]") -> bool:
    """Whether a checkpoint's folder holds a tokenizer, which then knows the tokens that were added."""
    return any((Path(path) / name).is_file() for name in _TOKENIZERS)


def _rounds(tensor: Tensor, dtype: torch.dtype) -> bool:
    """Whether a tensor loses digits in a dtype."""
    return not torch.equal(tensor.to(dtype).to(tensor.dtype), tensor)
