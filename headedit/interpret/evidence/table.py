"""The evidence for every edited head in one table, from which reports and pictures are made."""

from collections.abc import Iterable, Sequence
from math import nan
from typing import TYPE_CHECKING, Any, Literal

from headedit.data.batches import Encoded
from headedit.data.encoding import encode_all, last_response
from headedit.data.tokens import without_end
from headedit.edits import HeadEdits
from headedit.edits.values import one_or_more, whole_number
from headedit.errors import HeadEditError
from headedit.hf.tokenizers import as_tokenizer
from headedit.interpret.evidence.attribution import HeadEstimates, attribute, integrate
from headedit.interpret.evidence.causal import HeadEffects, leave_one_out, patch
from headedit.interpret.evidence.heads import Head, edited_heads
from headedit.interpret.evidence.iti import HeadProbes, iti
from headedit.interpret.evidence.tokens import TokenChanges, by_weights, tokens
from headedit.interpret.naming import subtitle_of
from headedit.io.describe import describe
from headedit.io.optional import import_optional

if TYPE_CHECKING:
    import pandas  # type: ignore[import-untyped,unused-ignore]


def evidence(
    edits: HeadEdits,
    data: Iterable[Any],
    *,
    tokenizer: Any = None,
    probe: "HeadProbes | bool" = True,
    read: Literal["weights", "measured"] = "weights",
    patches: bool = False,
    steps: int = 8,
    top: int = 5,
    batch_size: int = 16,
    seed: int = 0,
    progress: bool = True,
) -> "pandas.DataFrame":
    """Gathers the evidence for every edited head, in eval mode, one row per head.

    Columns, those of losses in nats per token:
        layer, kind, head: which head; head as ``HeadEdits.gates`` counts.
        open: whether its edit has an open gate.
        gate, gate_offset, gate_scale: the larger of its gates, and each of them; NaN without the vector.
        offset_norm, scale_norm: ‖g·a‖₂ and ‖g·m‖₂, by the second of which LoFiT ranks heads; NaN without the vector.
        contribution, share: size of what the edit adds to the head's output, and that over the output's own; see
            ``HeadEstimates``.
        effect, effect_error: rise of the loss without the head's edit, and its standard error over the examples; see
            ``leave_one_out``. Exactly 0 for a head that is not open.
        attribution, patch_attribution: estimates for all heads in one pass; see ``HeadEstimates``.
        integrated: estimate for all heads in ``steps`` passes; see ``integrate``.
        patch_base, patch_edited: only with ``patches``: change of the loss with the head's output put into the other
            run; see ``patch``.
        probe_accuracy: held-out accuracy of a linear probe on the head in the base model; see ``iti``.
        promotes, suppresses: the tokens whose logits the edit raises and lowers most, a list each; None where they
            cannot be read.

    Besides, ``attrs`` has ``loss``, ``base_loss``, ``examples``, ``probe_baseline`` (by kind), ``read`` and ``model``.

    Args:
        edits: the handle; not changed.
        data: examples of any form that ``headedit.fit`` takes.
        tokenizer: the model's tokenizer, its name or its folder; without it there are no tokens, and all examples must
            hold ``input_ids``.
        probe: the result of ``iti``; or True, for probes that tell an example's own response from that of another
            example; or False.
        read: tokens by the weights, or as measured on the data; see ``tokens``.
        patches: also patch every head between the two runs, at two forward passes per head.
        steps: passes of ``integrate``.
        top: number of tokens promoted, and of tokens suppressed.
        batch_size: examples per batch.
        seed: of the probes' split.
        progress: show bars.

    Raises:
        HeadEditError: nnsight or pandas is not installed, the edits are detached or merged, the tokenizer is not the
            model's, an option is out of its range, or an example cannot be used.
    """
    if read not in ("weights", "measured"):
        raise HeadEditError(f"read: found {read!r}, expected 'weights' or 'measured'.")
    if not isinstance(probe, HeadProbes | bool):
        raise HeadEditError(f"probe: found {describe(probe)}, expected the result of iti, True or False.")
    one_or_more(top, "top")
    one_or_more(steps, "steps")
    whole_number(seed, "seed")
    frame = import_optional("pandas", "The table of evidence").DataFrame
    heads = edited_heads(edits)
    tokenizer = as_tokenizer(tokenizer)
    rows = encode_all(data, tokenizer, edits.model, edits.module.date)
    opened = [head for head in heads if head.is_open]
    options: dict[str, Any] = {"batch_size": batch_size, "progress": progress}
    found = attribute(edits, rows, **options)
    effects = leave_one_out(edits, rows, heads="open", **options) if opened else None
    probes = _probes(edits, rows, probe, tokenizer, seed, options)
    columns = _edit_columns(heads) | _measured_columns(heads, found, effects)
    columns["integrated"] = integrate(edits, rows, steps=steps, **options).tolist()
    if patches:
        for into in ("base", "edited"):
            columns[f"patch_{into}"] = patch(edits, rows, into=into, **options).effects.tolist()
    columns["probe_accuracy"] = [
        probes[head.kind].accuracy[head.layer, head.head].item() if head.kind in probes else nan for head in heads
    ]
    changes = _tokens_by_head(edits, opened, tokenizer, rows, read, top, options)
    for name in ("promotes", "suppresses"):
        words = [getattr(changes.get(_key(head)), name, None) for head in heads]
        columns[name] = [None if pairs is None else [token for token, _ in pairs] for pairs in words]
    table = frame(columns)
    table.attrs = {
        "loss": found.loss,
        "base_loss": found.base_loss,
        "examples": len(rows),
        "probe_baseline": {kind: result.baseline for kind, result in probes.items()},
        "read": read,
        "model": subtitle_of([edits]),
    }
    return table


def _edit_columns(heads: Sequence[Head]) -> dict[str, list[Any]]:
    """Columns that describe the edits themselves."""
    gates = {id(head.edit): {v: g.tolist() for v, g in head.edit.gate_values().items()} for head in heads}

    def gate(head: Head, vector: str) -> float:
        found = gates[id(head.edit)].get(vector)
        return nan if found is None else found[head.index]

    def norm(head: Head, vector: str) -> float:
        effective = head.effective(vector)
        return nan if effective is None else effective.float().norm().item()

    return {
        "layer": [head.layer for head in heads],
        "kind": [head.kind for head in heads],
        "head": [head.head for head in heads],
        "open": [head.is_open for head in heads],
        "gate": [max(gates[id(head.edit)][vector][head.index] for vector in head.edit.vectors) for head in heads],
        "gate_offset": [gate(head, "offset") for head in heads],
        "gate_scale": [gate(head, "scale") for head in heads],
        "offset_norm": [norm(head, "offset") for head in heads],
        "scale_norm": [norm(head, "scale") for head in heads],
    }


def _measured_columns(heads: Sequence[Head], found: HeadEstimates, effects: HeadEffects | None) -> dict[str, list[Any]]:
    """Columns of the edits' measured effects on outputs and loss."""
    exact: dict[tuple[str, int], tuple[float, float]] = {}
    if effects is not None:
        values = zip(effects.effects.tolist(), effects.errors.tolist(), strict=True)
        exact = {_key(head): value for head, value in zip(effects.heads, values, strict=True)}
    return {
        "contribution": found.contribution.tolist(),
        "share": found.share.tolist(),
        "effect": [exact.get(_key(head), (0.0, 0.0))[0] for head in heads],
        "effect_error": [exact.get(_key(head), (0.0, 0.0))[1] for head in heads],
        "attribution": found.attribution.tolist(),
        "patch_attribution": found.patch.tolist(),
    }


def _tokens_by_head(
    edits: HeadEdits, opened: Sequence[Head], tokenizer: Any, rows: Sequence[Encoded], read: str, top: int, options: Any
) -> dict[tuple[str, int], TokenChanges]:
    """The tokens that the edits of the open heads promote and suppress, where they can be read."""
    if tokenizer is None or not opened:
        return {}
    if read == "measured":
        words = tokens(edits, tokenizer, rows, top=top, **options)
        return {_key(word.head): word.measured for word in words if word.measured is not None}
    by_head, _ = by_weights(edits, opened, tokenizer, top)
    return {_key(head): found for head, found in zip(opened, by_head, strict=True) if found is not None}


def _probes(
    edits: HeadEdits, rows: Sequence[Encoded], probe: "HeadProbes | bool", tokenizer: Any, seed: int, options: Any
) -> dict[str, HeadProbes]:
    """Results of the probes by kind of site."""
    if isinstance(probe, HeadProbes):
        expected = tuple(edits.gates(probe.kind).offset.shape)
        if tuple(probe.accuracy.shape) != expected:
            raise HeadEditError(
                f"probe: is of {tuple(probe.accuracy.shape)} layers and heads, but these edits have {expected}. Give "
                "the result of iti on these edits."
            )
        return {probe.kind: probe}
    if not probe:
        return {}
    examples, labels = own_or_other(rows, tokenizer)
    return {kind: iti(edits, examples, labels, kind=kind, seed=seed, **options) for kind in edits.module.kinds()}


def own_or_other(rows: Sequence[Encoded], tokenizer: Any) -> tuple[list[dict[str, list[int]]], list[int]]:
    """Pairs every prompt with its own last response, label 1, and with the next different one, label 0, to probe heads.

    Args:
        rows: of ``encode_all``.
        tokenizer: knows the tokens that end a response, which are left out; None to keep them.

    Raises:
        HeadEditError: labels are not the tokens of a response at the end, or no two responses differ.
    """
    pairs = []
    for i, row in enumerate(rows):
        ids, labels = row["input_ids"], row["labels"]
        start, _ = last_response(row, f"Example {i + 1}")
        if labels[start:] != ids[start:] or start == 0:
            raise HeadEditError(
                f"probe: example {i + 1} is not a prompt followed by a response, so there is nothing to tell apart. "
                "Give the result of iti on labelled examples, or probe=False."
            )
        body = ids[start:] if tokenizer is None else without_end(ids[start:], tokenizer)
        pairs.append((ids[:start], body or ids[start:]))
    examples, labels = [], []
    for i, (prompt, own) in enumerate(pairs):
        rest = (response for _, response in [*pairs[i + 1 :], *pairs[:i]] if response != own)
        other = next(rest, None)
        if other is None:
            raise HeadEditError("probe: all examples have the same response. Give the result of iti, or probe=False.")
        examples += [{"input_ids": prompt + own}, {"input_ids": prompt + other}]
        labels += [1, 0]
    return examples, labels


def _key(head: Head) -> tuple[str, int]:
    return head.site.path, head.index
