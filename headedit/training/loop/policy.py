"""Trainers that compare the log-probabilities of passes: DPO, KTO, GRPO, RLOO and their kin, as TRL has them.

Their gates are deterministic in every pass, so that a difference between two passes is one of the policies and not of
the draw of the gates. Their reference is the base model with a frozen copy of the edits as they were at the start.
"""

import inspect
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import nn

from headedit.edits import HeadEdits
from headedit.errors import HeadEditError
from headedit.hf.modes import evaluating
from headedit.training.loop.state import State, read_state, write_state

logger = logging.getLogger(__name__)

REFERENCE = "headedit_reference"
"""Name of the files of a checkpoint that hold the edits of the reference."""

_ONE_POLICY = frozenset({"SFTTrainer", "RewardTrainer"})
_MAKE_THEIR_OWN = frozenset({"GRPOTrainer", "RLOOTrainer"})


class Reference(nn.Module):
    """The model with a frozen copy of its active adapter, in eval mode: a reference that needs no second base model.

    It has the attributes of the model, such as its config, and no parameters of its own.

    Args:
        edits: the handle; its active adapter is copied as it is.
    """

    def __init__(self, edits: HeadEdits) -> None:
        super().__init__()
        shared = {id(site): site for site in edits.sites}  # they refer to modules of the base
        adapter = deepcopy(edits.module, shared).requires_grad_(False).eval()
        self.__dict__.update(_edits=edits, _adapter=adapter)  # as modules they would be trained, moved and saved

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.__dict__["_edits"].model, name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The output of the model with the frozen edits, called as the model is."""
        edits: HeadEdits = self.__dict__["_edits"]
        adapter = self.__dict__["_adapter"]
        with evaluating(edits.model), edits.applying(adapter):
            return edits.model(*args, **kwargs)

    def frozen_state(self) -> State:
        """The frozen edits: their parameters, their strength, and which sites they skip."""
        adapter = self.__dict__["_adapter"]
        plain = {"strength": adapter.strength, "idle": [edit.idle for edit in adapter]}
        return State(plain, {name: p.detach().clone() for name, p in adapter.named_parameters()})

    @torch.no_grad()
    def set_frozen_state(self, state: State) -> None:
        """Sets the frozen edits to those of a state."""
        adapter = self.__dict__["_adapter"]
        for name, parameter in adapter.named_parameters():
            parameter.copy_(state.tensors[name])
        adapter.strength = state.plain["strength"]
        for edit, idle in zip(adapter, state.plain["idle"], strict=True):
            edit.idle = idle


def compares_policies(trainer: type) -> bool:
    """Whether a class of Trainers is one of TRL's that compare the log-probabilities of several passes."""
    kind = _kind(trainer)
    return kind is not None and kind.__name__ not in _ONE_POLICY


@contextmanager
def reference_of_start(trainer: Any, edits: HeadEdits, options: dict[str, Any]) -> Iterator[None]:
    """A context in which a Trainer is made: its reference becomes the model with the edits as they are at the start.

    A Trainer that compares no policies, or one with a ``ref_model`` of the user's, is made as it is.

    Args:
        trainer: the Trainer, which is made in the context.
        edits: the handle of the edits that it is to train.
        options: the arguments that it is made with; some are changed.

    Raises:
        HeadEditError: such a reference cannot follow the policy, be sharded, or be told from LoRA on the same model.
    """
    kind = _kind(type(trainer))
    if kind is None or not compares_policies(type(trainer)):
        yield
        return
    args: Any = options.get("args")
    takes = "ref_model" in inspect.signature(kind).parameters
    names = {base.__name__ for base in type(trainer).__mro__}
    beta = getattr(args, "beta", None)
    makes = bool(_MAKE_THEIR_OWN & names) and bool(beta)
    if options.get("ref_model") is not None or not (takes or makes):
        with edits.deterministic_gates():
            yield
        return
    _check(edits, args, options)
    if takes and not getattr(args, "precompute_ref_log_probs", False):
        options["ref_model"] = Reference(edits)
    if makes:
        args.beta = 0.0  # else it loads the base model once more
    try:
        with edits.deterministic_gates():
            yield
    finally:
        if makes:
            args.beta = beta
    if makes:
        trainer.beta = beta
    trainer.ref_model = Reference(edits)  # TRL has patched the forward pass of the one that it was given


def save_reference(trainer: Any, folder: Path) -> None:
    """Writes the frozen edits of a Trainer's reference into a checkpoint; nothing if it has no such reference."""
    reference = getattr(trainer, "ref_model", None)
    if isinstance(reference, Reference):
        write_state(folder, REFERENCE, reference.frozen_state())


def restore_reference(trainer: Any, folder: Path) -> None:
    """Gives a Trainer the reference that ``save_reference`` wrote into a checkpoint.

    Raises:
        HeadEditError: the log-probabilities of another reference were computed when the Trainer was made.
    """
    reference = getattr(trainer, "ref_model", None)
    if not isinstance(reference, Reference):
        return
    state = read_state(folder, REFERENCE)
    if state is None:
        logger.warning(
            "%s: holds no reference, so it is made of the edits that the model had when the Trainer was made.", folder
        )
        return
    own = reference.frozen_state()
    same = own.plain == state.plain and all(torch.equal(own.tensors[n].cpu(), t) for n, t in state.tensors.items())
    if not same and getattr(trainer.args, "precompute_ref_log_probs", False):
        raise HeadEditError(
            f"precompute_ref_log_probs: the log-probabilities of the reference were computed from the edits that the "
            f"model has, and {folder} was trained against those of other edits. Put the edits on the model that the "
            "training began with before the Trainer is made, or leave precompute_ref_log_probs at False."
        )
    reference.set_frozen_state(state)


def _kind(trainer: type) -> type | None:
    """The class of TRL that a Trainer is made from; None where there is none."""
    return next((base for base in trainer.__mro__ if base.__module__.partition(".")[0] == "trl"), None)


def _check(edits: HeadEdits, args: Any, options: dict[str, Any]) -> None:
    """Raises a HeadEditError where a frozen copy of the edits is not the reference that was asked for."""
    advice = "Pass ref_model=, a model of its own, for another reference."
    if getattr(args, "sync_ref_model", False):
        raise HeadEditError(
            "sync_ref_model: the reference is a frozen copy of the edits as they are at the start, which does not "
            f"follow the policy. Leave sync_ref_model at False. {advice}"
        )
    if options.get("peft_config") is not None or hasattr(edits.model, "peft_config"):
        raise HeadEditError(
            "peft_config: the reference is this model with a frozen copy of the edits, and LoRA that is trained on the "
            f"same model would be in it. Train the edits without PEFT here. {advice}"
        )
    for name, variable in (("fsdp", "ACCELERATE_USE_FSDP"), ("deepspeed", "ACCELERATE_USE_DEEPSPEED")):
        if getattr(args, name, None) or os.environ.get(variable, "").lower() in ("true", "1"):
            raise HeadEditError(
                f"{name}: the reference is this model with a frozen copy of the edits, and cannot be run while the "
                f"weights are sharded. Train with data parallelism, or on one device. {advice}"
            )
