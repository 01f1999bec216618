"""What quantities are called, with their units: one table for all pictures, the report and the tables of results."""

import math
import textwrap
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Label:
    """The name of a quantity.

    Fields:
        short: in a word or two, as above the column of a table.
        full: as on an axis; by default the same.
        unit: of its numbers; empty where they have none.
        meaning: a sentence on it; empty where the name says enough.
    """

    short: str
    full: str = ""
    unit: str = ""
    meaning: str = ""


_LOSS = "nats per token"

LABELS = {
    # heads, and what their edits hold
    "layer": Label(short="layer", meaning="Index of the layer."),
    "head": Label(short="head", meaning="Index of the head in its layer."),
    "kind": Label(short="kind", meaning="Kind of the head's site."),
    "edit": Label(short="edit", meaning="Which vectors have an open gate."),
    "gate": Label(short="gate", full="gate, the larger of the two"),
    "gate_offset": Label(short="offset gate", meaning="From 0, closed, to 1, open, in eval mode."),
    "gate_scale": Label(short="scale gate", meaning="From 0, closed, to 1, open, in eval mode."),
    "offset_norm": Label(
        short="‖g·a‖", full="length of the offset, ‖g·a‖", meaning="Length of what is added to the head's output."
    ),
    "scale_norm": Label(
        short="‖g·m‖",
        full="length of the scale, ‖g·m‖",
        meaning="Length of the change of the factors on the head's output.",
    ),
    "scale_rms": Label(short="rms(g·m)", full="size of the scale, rms(g·m)"),
    "offset_share": Label(short="‖g·a‖ / ‖z‖", full="length of the offset", unit="share of the head's output"),
    # evidence for heads
    "effect": Label(
        short="effect",
        full="rise of the loss without the edit",
        unit=_LOSS,
        meaning="Rise of the loss, in nats per token, when the edit of this head alone is switched off.",
    ),
    "effect_error": Label(short="± effect", unit=_LOSS, meaning="Standard error of the effect over the examples."),
    "promotes": Label(short="promotes", meaning="Tokens that the edit makes more likely."),
    "suppresses": Label(short="suppresses", meaning="Tokens that the edit makes less likely."),
    "contribution": Label(
        short="contribution",
        full="contribution: size of the change of the head's output",
        meaning="Size of the change that the edit makes to the head's output.",
    ),
    "share": Label(
        short="share",
        full="contribution over the size of the head's output",
        meaning="Contribution over the size of the head's own output.",
    ),
    "attribution": Label(
        short="attribution",
        full="effect estimated by one gradient",
        unit=_LOSS,
        meaning="The effect, estimated for all heads at once by one gradient.",
    ),
    "integrated": Label(
        short="integrated",
        full="effect estimated by integrated gradients",
        unit=_LOSS,
        meaning="The effect, estimated for all heads at once by integrated gradients.",
    ),
    "patch_attribution": Label(
        short="patch estimate",
        full="effect of patching, estimated by one gradient",
        unit=_LOSS,
        meaning="Rise of the loss with the base model's head put in, estimated by one gradient.",
    ),
    "patch_base": Label(
        short="patch into base",
        full="change of the base model's loss with the edited head",
        unit=_LOSS,
        meaning="Change of the base model's loss with the edited head put in.",
    ),
    "patch_edited": Label(
        short="patch into edited",
        full="change of the edited model's loss with the base head",
        unit=_LOSS,
        meaning="Change of the edited model's loss with the base model's head put in.",
    ),
    "probe_accuracy": Label(
        short="probe accuracy",
        full="probe accuracy on held-out examples",
        meaning="Held-out accuracy of a linear probe on the head's output in the base model.",
    ),
    "logit_weights": Label(
        short="logit",
        full="direct effect of the offset on a logit, each head in a unit of its own",
    ),
    "logit_measured": Label(short="logit", full="mean change of a logit on data"),
    # how sure a gate is
    "proportion": Label(short="selected", full="share of the halves of the examples that select the gate"),
    "sure_offset": Label(
        short="offset selected", meaning="Share of the halves of the examples that select the offset's gate."
    ),
    "sure_scale": Label(
        short="scale selected", meaning="Share of the halves of the examples that select the scale's gate."
    ),
    "sure": Label(short="sure", meaning="Which gates the halves of the examples agree on, by stability selection."),
    "in_place_of": Label(
        short="in place of", meaning="Heads that are selected in its place: the halves select one or the other."
    ),
    "rate": Label(short="nominal rate", full="nominal rate of false gates"),
    "false_rate": Label(short="false", full="share of chosen gates that are false"),
    "false_rate_error": Label(short="± false"),
    "false_head_rate": Label(short="false heads", full="share of chosen heads that are false"),
    "power": Label(short="power", full="share of planted gates that are chosen"),
    "chosen": Label(short="chosen", full="chosen gates"),
    "false": Label(short="false gates"),
    "bound": Label(short="bound", full="bound on the number of false gates"),
    "decoy_rate": Label(short="decoys say", full="false discovery rate by the decoys"),
    # counts
    "any": Label(short="edited heads"),
    "offset": Label(short="open offset gates"),
    "scale": Label(short="open scale gates"),
    "offset_gates": Label(short="offset gates"),
    "scale_gates": Label(short="scale gates"),
    "parameters": Label(short="parameters", full="parameters in effect"),
    "examples": Label(short="examples", full="training examples"),
    "heads": Label(short="heads", full="edited heads"),
    "gates": Label(short="gates", full="open gates"),
    "steps": Label(short="steps", full="optimiser step"),
    # the course of a run
    "loss": Label(short="loss", unit=_LOSS),
    "training_loss": Label(short="training loss", unit=_LOSS),
    "validation_loss": Label(short="validation loss", unit=_LOSS),
    "base_loss": Label(short="base model", full="validation loss of the base model", unit=_LOSS),
    "refit_loss": Label(short="refit", full="validation loss of a refit", unit=_LOSS),
    "test_loss": Label(short="test loss", unit=_LOSS),
    "penalty": Label(short="penalty", full="penalty  λ·Σ P(g ≠ 0)", unit="nats"),
    "lambda_offset": Label(short="λ of offsets", unit="nats per gate"),
    "lambda_scale": Label(short="λ of scales", unit="nats per gate"),
    "vector_rate": Label(short="vectors", full="learning rate of the vectors"),
    "gate_rate": Label(short="gates", full="learning rate of the gates"),
    "kept": Label(short="edits kept"),
    "jaccard": Label(short="Jaccard index", full="Jaccard index of the chosen heads"),
    "chance": Label(short="chance"),
    "metric": Label(short="metric"),
    "seed": Label(short="seed"),
    "seconds": Label(short="time", unit="s"),
    # methods
    "recipe": Label(short="recipe"),
    "task": Label(short="task"),
    "exact_match": Label(short="exact match"),
    "accuracy": Label(short="accuracy", full="token accuracy on unseen examples"),
    "accuracy_min": Label(short="worst accuracy"),
    "f1_offset": Label(short="F1 offset", full="F1 of offset heads, planted against chosen"),
    "f1_offset_min": Label(short="worst F1 offset"),
    "f1_scale": Label(short="F1 scale", full="F1 of scale heads, planted against chosen"),
    "f1_scale_min": Label(short="worst F1 scale"),
    "ratio": Label(short="of oracle", full="accuracy over the oracle's"),
    "oracle": Label(short="oracle"),
    "unedited": Label(short="unedited"),
    "seconds_max": Label(short="longest", unit="s"),
    "method": Label(short="method"),
    "size": Label(short="examples", full="training examples"),
    "score": Label(short="score"),
    "score_low": Label(short="from", meaning="Lower end of the 95 % interval of the score."),
    "score_high": Label(short="to", meaning="Upper end of the 95 % interval of the score."),
    "against_lora": Label(short="against LoRA", meaning="Score less that of LoRA on the same test examples."),
    "p_value": Label(short="p", meaning="Of the paired test against LoRA."),
    "peak_memory": Label(short="peak memory", unit="MiB"),
    "disk": Label(short="on disk", unit="MiB"),
    "runs": Label(short="runs", meaning="Seeds with which the method could be used."),
    "mean_rank": Label(short="mean rank"),
    "cells": Label(short="tasks and sizes"),
    "agreement": Label(short="agreement", full="Jaccard index of the chosen heads"),
    "error": Label(short="why not"),
    # cost
    "step": Label(short="training step", unit="ms"),
    "forward": Label(short="forward pass", unit="ms"),
    "time": Label(short="time", unit="ms"),
    "time_ratio": Label(short="ratio", full="ratio of medians"),
    "bytes": Label(short="whole", full="files of the edits", unit="KiB"),
    "hardened_bytes": Label(short="hardened, 5 % of heads", full="files of the edits", unit="KiB"),
    "layers": Label(short="layers"),
    "heads_per_layer": Label(short="heads per layer"),
    "tokens_per_sequence": Label(short="tokens per sequence"),
    "adapters": Label(short="adapters", full="adapters on the model"),
    "enter_first_ms": Label(short="entering route the first time", unit="ms"),
    "enter_ms": Label(short="entering route again", unit="ms"),
    "add_ms": Label(short="adding one adapter", unit="ms"),
    "against_one": Label(short="over one adapter"),
    "against_bare": Label(short="over the bare model"),
}
"""By quantity: the columns of the evidence, the keys of a history and of the benches' rows, and what pictures show."""


def head_name(layer: int, head: int) -> str:
    """What a head is called, such as ``L1H5`` for head 5 of layer 1."""
    return f"L{layer}H{head}"


def with_error(value: float, error: float) -> str:
    """A value with its error: the error with two digits, the value with as many decimals, such as ``5.98 ± 0.13``."""
    if not (math.isfinite(value) and math.isfinite(error)):
        return f"{value:.4g}"
    if error <= 0:
        return f"{value:.4g} ± 0"
    decimals = min(9, max(0, 1 - math.floor(math.log10(error))))
    return f"{value:.{decimals}f} ± {error:.{decimals}f}"


def short(quantity: str) -> str:
    """The name in a word or two, without a unit."""
    return LABELS[quantity].short


def label(quantity: str) -> str:
    """The short name with its unit, such as ``loss (nats per token)``."""
    return _with_unit(LABELS[quantity].short, LABELS[quantity].unit)


def axis_label(quantity: str, width: int = 42) -> str:
    """The full name with its unit, broken into lines of at most so many letters, the unit on a line of its own."""
    named = LABELS[quantity]
    name = named.full or named.short
    whole = _with_unit(name, named.unit)
    return whole if len(whole) <= width else f"{textwrap.fill(name, width)}\n{_with_unit('', named.unit)}".strip()


def _with_unit(name: str, unit: str) -> str:
    return f"{name} ({unit})".strip() if unit else name
