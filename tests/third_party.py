"""Edited tiny models for the tests of the page "Works with"."""

from tiny import randomise
from torch import nn
from transformers import PreTrainedModel

import headedit
from headedit import HeadEdits


def edited(model: nn.Module, seed: int = 0) -> HeadEdits:
    """Edits that matter, attached to a model; the same for the same seed."""
    edits = headedit.attach(model)
    randomise(edits, seed)
    return edits


def merged(model: nn.Module, seed: int = 0) -> PreTrainedModel:
    """The plain model that holds the same edits in its weights."""
    plain = edited(model, seed).merge_and_unload()
    assert not any(module._forward_pre_hooks for module in plain.modules())
    return plain
