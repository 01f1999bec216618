"""Fingerprints of a model, its edits and its tokenizer, by which a report says what was measured."""

import hashlib
import json
from collections.abc import Iterable
from typing import Any

from torch import nn

from headedit.data.tokens import TokenisedPrompt
from headedit.edits.active_adapter import ActiveAdapter
from headedit.edits.adapter_state import AdapterState
from headedit.edits.attached import handle_of
from headedit.edits.files.record import config_record
from headedit.edits.handle import HeadEdits
from headedit.hf.digest import digest_of, settings_digest, tensor_bytes, weights_digest
from headedit.hf.names import portable_name
from headedit.version import __version__

DIGESTS = {
    "weights": "weights",
    "settings": "config or settings of generation",
    "edits": "edits",
    "attached": "attached edits",
    "tokenizer": "tokenizer or chat template",
}
"""The keys of a fingerprint that are digests, and what each is of."""


def fingerprint(
    model: nn.Module, edits: HeadEdits | None, tokenizer: Any = None, prompts: Iterable[str] = ()
) -> dict[str, Any]:
    """What was measured: names and sizes that a reader knows, and digests of all that the figures depend on.

    Args:
        model: the model.
        edits: its edits, where they are compared with the base.
        tokenizer: its tokenizer.
        prompts: the prompts; the token ids of those that bring some are part of the tokenizer's digest.

    Returns:
        Name, number of parameters and dtype of the model; digests of its weights, of its config and settings of
        generation, of ``edits``, of edits that are ``attached`` and not compared, and of the tokenizer; the version.

    Raises:
        HeadEditError: attached edits are in a context such as ``route()``, which no digest is of.
    """
    config: Any = model.config
    first = next(model.parameters())
    handles = [handle for handle in map(handle_of, model.modules()) if handle is not None]
    for handle in handles if edits is None else ():
        if handle.in_context() and not handle.disabled:
            handle.refuse_contexts("the model cannot be evaluated")
    inside = {module for handle in handles for name in handle.adapters for module in handle[name].modules()}
    own = {parameter for module in inside for parameter in module.parameters(recurse=False)}
    return {
        "model": portable_name(getattr(config, "_name_or_path", "")) or type(model).__name__,
        "parameters": sum(p.numel() for p in model.parameters() if p not in own),
        "dtype": str(first.dtype).removeprefix("torch."),
        "weights": weights_digest(model, inside),
        "settings": settings_digest(model),
        "edits": None if edits is None else _edits_digest([edits]),
        "attached": None if edits is not None or not handles else _edits_digest(handles),
        "tokenizer": None if tokenizer is None else _tokenizer_digest(tokenizer, prompts),
        "headedit": __version__,
    }


def _edits_digest(handles: Iterable[AdapterState]) -> str:
    """A digest of the active adapters: their sites, shape, values and strength, and whether they act or are merged."""
    found = hashlib.sha256()
    for handle in handles:
        assert isinstance(handle, ActiveAdapter)
        adapter = handle.module
        state = [config_record(adapter.config), handle.strength, handle.disabled, handle.merged_adapters]
        found.update(digest_of(state).encode())
        for site, edit in adapter.pairs():
            found.update(f"{site.name}, {site.heads} heads of {site.head_dim}, idle {edit.idle}".encode())
            for name, tensor in sorted(edit.values().items()):
                found.update(name.encode())
                for part in tensor_bytes(tensor):
                    found.update(part)
    return found.hexdigest()[:16]


def _tokenizer_digest(tokenizer: Any, prompts: Iterable[str]) -> str:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        state = json.loads(backend.to_str())
        for passing in ("truncation", "padding"):  # of the last call
            state.pop(passing, None)
    else:
        state = tokenizer.get_vocab() if hasattr(tokenizer, "get_vocab") else type(tokenizer).__name__
    ids = [[prompt.ids, prompt.ending] for prompt in prompts if isinstance(prompt, TokenisedPrompt)]
    named = [getattr(tokenizer, name, None) for name in ("chat_template", "special_tokens_map", "eos_token_id")]
    return digest_of([state, *named, ids])
