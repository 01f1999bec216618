"""The settings with which a run fits a device and learns the same: smaller batches, checkpointing, FlashAttention."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from headedit.errors import HeadEditError
from headedit.training.memory_plan.planner import Plan, Planner
from headedit.training.memory_plan.setup import Setup


@dataclass(frozen=True)
class Fit:
    """Changes of a run with which it fits.

    Fields:
        plan: of the changed run.
        changes: the changes in words.
        settings: the changed values, by key of a run's config.
    """

    plan: Plan
    changes: tuple[str, ...]
    settings: dict[str, Any]


def find_fit(planner: Planner, plan: Plan, memory: int, *, accumulation: int = 1, flash: bool = False) -> Fit | None:
    """The changes that cost least time, and after which every step sees the same examples; None where none is enough.

    Gradients are those of the run as it was, up to rounding: with parts of a batch the loss is still the mean over the
    labelled tokens of all of it, and checkpointing computes the same again. Where gates are drawn, each part of a batch
    has a draw of its own.

    Args:
        planner: of the model.
        plan: of the run as it is.
        memory: bytes of a device.
        accumulation: batches per step of the run as it is.
        flash: whether FlashAttention may be chosen.

    Returns:
        The first changes after which the run fits even if the estimate is too low; or else those that need least, if
        the run fits by the estimate.
    """
    least: Plan | None = None
    for setup in _setups(plan.setup, flash):
        try:
            found = _planned(planner, setup, memory)
        except HeadEditError:  # the model has no such option
            continue
        if found.verdict(memory) == "fits":
            return _fit(plan.setup, found, accumulation)
        if least is None or found.total < least.total:
            least = found
    if least is None or least.total > memory:
        return None
    return _fit(plan.setup, least, accumulation)


def _setups(setup: Setup, flash: bool) -> Iterator[Setup]:
    """Setups by what they cost: attention first, then smaller batches, then layers that are run again."""
    attentions = [setup.attention]
    if flash and setup.device == "cuda" and setup.attention != "flash":
        attentions.append("flash")
    sizes = [n for n in range(setup.batch_size, 0, -1) if setup.batch_size % n == 0]
    for checkpointing in dict.fromkeys((setup.checkpointing, True)):
        for size in sizes:
            for attention in attentions:
                yield replace(
                    setup,
                    batch_size=size,
                    checkpointing=checkpointing,
                    attention=attention,
                    eval_batch_size=setup.in_validation,
                )


def _planned(planner: Planner, setup: Setup, memory: int) -> Plan:
    """The plan of a setup, with smaller batches in validation where these need more than a step and do not fit."""
    found = planner.plan(setup)
    if found.verdict(memory) == "fits" or found.validation <= found.saved + found.working:
        return found
    return planner.plan(replace(setup, eval_batch_size=min(setup.in_validation, setup.batch_size)))


def _fit(before: Setup, found: Plan, accumulation: int) -> Fit:
    after = found.setup
    changes: list[str] = []
    settings: dict[str, Any] = {}
    if after.attention != before.attention:
        changes.append("FlashAttention")
        settings["model.attn_implementation"] = "flash_attention_2"
    if after.batch_size != before.batch_size:
        times = accumulation * before.batch_size // after.batch_size
        changes.append(
            f"batch size {after.batch_size} with accumulation {times}, for {before.batch_size} with {accumulation}: "
            f"{times * after.batch_size} examples per step as before"
        )
        settings |= {"recipe.batch_size": after.batch_size, "training.gradient_accumulation_steps": times}
    if after.checkpointing and not before.checkpointing:
        changes.append("gradient checkpointing")
        settings |= {
            "training.gradient_checkpointing": True,
            "training.gradient_checkpointing_kwargs": {"use_reentrant": False},
        }
    if after.in_validation != before.in_validation:
        changes.append(f"batch size {after.in_validation} in validation, for {before.in_validation}")
    if settings or after.in_validation != before.in_validation:
        settings["training.per_device_eval_batch_size"] = after.in_validation
    return Fit(found, tuple(changes), settings)
