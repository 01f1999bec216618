"""Edits merged by exporting: a model whose projections can have no bias becomes one of a type whose projections can.

Qwen2 and Mistral compute what Llama computes where no sliding window acts, and Llama's ``attention_bias`` gives the
output projection a bias. The classes are those of transformers; that both give the same is measured.
"""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING

from headedit.edits.adapter import Adapter
from headedit.edits.adapter_set import AdapterSet
from headedit.edits.merge.bias import bias_flags_for, find_bias_flags, plain_names
from headedit.edits.merge.fold import adapter_to_merge, check_finite, fold
from headedit.errors import HeadEditError
from headedit.hf.modes import evaluating
from headedit.specs.registry import spec_of_type

_TOKENS = 24


def must_export(edits: AdapterSet, adapter_names: list[str] | None = None) -> bool:
    """Whether edits can only be merged as a model of another type, which the spec names, for want of a bias."""
    if edits.spec.merge is None or edits.spec.merge.rehome is None:
        return False
    folded = fold(edits, adapter_to_merge(edits, adapter_names))
    return bias_flags_for(edits.model, edits.spec, [f.site for f in folded if f.bias is not None]) is None


def export_as(
    edits: AdapterSet, adapter_names: list[str] | None = None, *, safe_merge: bool = False, progressbar: bool = False
) -> nn.Module:
    """A plain model of the type that the spec names, with edits in its weights; the edited model does not change.

    Weights that the edits do not change are shared with the edited model, not copied.

    Args:
        edits: the adapter set; not merged.
        adapter_names: the adapters to merge, several as their sum; by default the active one.
        safe_merge: refuse results that are NaN or infinite.
        progressbar: show a bar over the sites.

    Raises:
        HeadEditError: the spec names no other type, a sliding window acts, a weight cannot be merged, or the result
            gives other logits than the edited model.
    """
    model: Any = edits.model
    target = None if edits.spec.merge is None else edits.spec.merge.rehome
    if target is None:
        raise HeadEditError(f"{edits.spec.source}: merge: names no type to export a {type(model).__name__} as.")
    if edits.merged is not None:
        raise HeadEditError("These edits are merged already; call unmerge_adapter() first.")
    reason = why_not_exportable(model, target)
    if reason is not None:
        raise HeadEditError(f"This {type(model).__name__} cannot be exported as {target}: {reason}.")
    adapter = adapter_to_merge(edits, adapter_names)
    folded = fold(edits, adapter, progressbar=progressbar)
    if safe_merge:
        check_finite(folded)
    state = {name: p.detach() for name, p in model.named_parameters(remove_duplicate=False)}
    state = {name: state[name] for name in plain_names(model)}
    state |= {f"{new.site.path}.weight": new.weight for new in folded}
    biases = {f"{new.site.path}.bias": new.bias for new in folded if new.bias is not None}
    config = _config(model, target)
    cls = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    rule = spec_of_type(target).merge
    first = None if rule is None else rule.bias_key
    flags = find_bias_flags(cls, config, first, biases.keys() - state.keys(), state)
    if flags is None:
        raise HeadEditError(
            f"A {cls.__name__} does not have the parameters of this {type(model).__name__}: not exported."
        )
    for key in flags.keys:
        setattr(config, key, True)
    for name, empty in flags.biases.items():
        like = state[f"{name.rpartition('.')[0]}.weight"]
        state[name] = torch.zeros(empty.shape, dtype=like.dtype, device=like.device)
    state |= biases
    plain: nn.Module = _build(cls, config, state, model)
    _check_same_logits(edits, adapter, plain)
    return plain


def why_not_exportable(model: nn.Module, target: str) -> str | None:
    """The reason why a model of another type would not compute the same; None where it would."""
    config: Any = model.config
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING or type(model) is not MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]:
        return f"it is a {type(model).__name__}, which is not the plain causal LM of its type"
    honoured = hasattr(type(config), "layer_types")  # Mistral's config accepts them and ignores them
    kinds = set(config.layer_types or []) if honoured else set()
    if kinds - {"full_attention", "sliding_attention"}:
        return f"it has layers of the types {', '.join(sorted(kinds))}"
    window, longest = getattr(config, "sliding_window", None), config.max_position_embeddings
    if window is not None and (not kinds or "sliding_attention" in kinds) and window < longest:
        return (
            f"its sliding window of {window} tokens acts in texts up to {longest}, and a {target} has none. Where "
            f"yours are never longer than {window}, load it with max_position_embeddings={window}"
        )
    try:
        _config(model, target)
    except Exception as error:  # whatever the other config raises for values that it does not take
        return f"its config does not fit ({type(error).__name__}: {error})"
    return None


def _config(model: nn.Module, target: str) -> Any:
    """A config of the target's type with every value that both know."""
    source: Any = model.config
    cls = CONFIG_MAPPING[target]
    known = cls().to_dict().keys() - {"model_type", "architectures", "transformers_version"}
    values = {key: copy.deepcopy(value) for key, value in source.to_dict().items() if key in known}
    return cls(**values)


def _build(cls: Any, config: Any, state: dict[str, Tensor], model: Any) -> Any:
    dtype = next(iter(state.values())).dtype
    config._attn_implementation = model.config._attn_implementation
    plain = cls.from_pretrained(None, config=config, state_dict=state, dtype=dtype)
    plain.generation_config = copy.deepcopy(model.generation_config)
    plain.train(model.training)
    return plain


@torch.no_grad()
def _check_same_logits(edits: AdapterSet, adapter: Adapter, plain: nn.Module) -> None:
    """Refuses a model whose logits are not those of the edited one, on random tokens."""
    model: Any = edits.model
    length = min(_TOKENS, model.config.max_position_embeddings)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(model.config.vocab_size, (2, length), generator=generator).to(model.device)
    with edits.applying(adapter):
        wanted = _logits(model, ids)
    found = _logits(plain, ids)
    off = float((wanted - found).abs().max() / wanted.abs().max())
    if not off <= torch.finfo(model.dtype).eps ** 0.5:
        raise HeadEditError(
            f"Exported as {type(plain).__name__}, the logits are off by {off:.1e} of the largest: not exported. Keep "
            "the edits next to the model (save_pretrained, and headedit.load on the base model)."
        )


def _logits(model: Any, ids: Tensor) -> Tensor:
    with evaluating(model):
        result: Tensor = model(input_ids=ids).logits.float()
    return result
