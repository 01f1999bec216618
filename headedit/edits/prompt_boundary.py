"""Where in a pass the prompts end: by what the model is called with, and by what the code around it knows.

In this order: the lengths of ``prompt_lengths``; labels; the call of ``generate`` that makes the pass; the cache that
it goes on from or begins. Where none of them tells, the pass is refused.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from headedit.data.batches import IGNORED
from headedit.data.prompts import known_labels, known_lengths
from headedit.edits.generate_call import GenerateCall, running_generate
from headedit.edits.positions import Boundary, PassTokens
from headedit.errors import HeadEditError

_PACKED = ("cu_seq_lens_q", "cu_seq_lens_k", "cu_seqlens", "seq_idx", "packed_seq_lengths")
_WAY_OUT = "Call it within edits.prompt_lengths([...]), with the number of prompt tokens of each row"


def tokens_of(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], owner: object) -> PassTokens:
    """The tokens of a pass that begins.

    Args:
        module: the module that is called, the model or a part that holds all of its layers.
        args: what it is called with by place.
        kwargs: what it is called with by name.
        owner: whose contexts count.
    """
    given = {**dict(zip(_parameters(module), args, strict=False)), **kwargs} if args else dict(kwargs)
    text = next((given[key] for key in ("input_ids", "inputs_embeds", "decoder_input_ids", "decoder_inputs_embeds")
                 if isinstance(given.get(key), Tensor) and given[key].dim() > 1), None)  # fmt: skip
    if text is None:
        return PassTokens(0, 0, _refusing("it is called without input_ids, [batch, tokens]"))
    batch, tokens = text.shape[:2]
    lengths = known_lengths(owner)
    labels = given.get("labels")
    call = None if isinstance(labels, Tensor) and lengths is None else running_generate(module)
    if lengths is None and not isinstance(labels, Tensor) and call is None:
        labels = known_labels()
    called = _Called(given, batch, tokens, text.device, _past(given), lengths, labels, call)
    return PassTokens(batch, tokens, called.boundary)


@dataclass(frozen=True)
class _Called:
    """What a model is called with, and what is known of the call.

    Fields:
        given: its arguments by name.
        batch, tokens: the shape of the pass.
        device: of its tokens.
        past: how many tokens the cache holds before the pass; None where it has another kind of state.
        lengths: of the prompts, as a context says.
        labels: of the tokens.
        call: the ``generate`` that makes the pass.
    """

    given: Mapping[str, Any]
    batch: int
    tokens: int
    device: torch.device
    past: int | Tensor | None
    lengths: tuple[int, ...] | None
    labels: object
    call: GenerateCall | None

    def boundary(self) -> Boundary:
        """Where generated tokens begin.

        Raises:
            HeadEditError: it cannot be told.
        """
        packed = next((key for key in _PACKED if self.given.get(key) is not None), None)
        if packed is not None:
            raise _unknown(f"it holds several texts in a row ({packed})", "Give each text a row of its own")
        if self.lengths is not None:
            return self._by_lengths(self.lengths)
        if isinstance(self.labels, Tensor):
            return self._by_labels(self.labels)
        if self.call is not None:
            return self._by_call(self.call)
        return self._by_cache()

    def _by_lengths(self, lengths: tuple[int, ...]) -> Boundary:
        if self.batch % len(lengths):
            raise HeadEditError(
                f"prompt_lengths() was given {len(lengths)} rows, but the batch has {self.batch}, which is not a "
                "multiple of it. Give the number of prompt tokens of every row of the batch."
            )
        wanted = torch.tensor(lengths, device=self.device).repeat_interleave(self.batch // len(lengths))
        return self._ends(wanted, self._known_past())

    def _ends(self, wanted: Tensor, past: int) -> Tensor:
        """The column behind the last of some numbers of tokens, [batch], in rows without their padding."""
        mask = self.given.get("attention_mask")
        if isinstance(mask, Tensor) and mask.dim() == 2:
            if mask.shape[1] < past + self.tokens:
                raise _unknown(
                    f"its attention_mask has {mask.shape[1]} columns for {past} cached and {self.tokens} new tokens"
                )
            real = mask[:, : past + self.tokens].to(self.device) != 0
            self._check_one_text(real[:, past:])
            before = (real.cumsum(1) < wanted[:, None]).sum(1)  # columns in front of the last of them
            return torch.where(wanted > 0, before + 1, 0) - past
        if mask is None or self.call is None:
            if mask is not None:
                raise _unknown("its attention_mask is not [batch, tokens], so padding is not seen", "Give such a mask")
            self._check_one_text(None)
            return wanted - past
        padding = self.call.mask  # a static cache's mask is of attention; padding is on the left in generate
        if padding is None:
            return wanted - past
        empty = (padding == 0).sum(1).to(self.device)
        return wanted + empty.repeat_interleave(self.batch // len(empty)) - past

    def _by_labels(self, labels: Tensor) -> Boundary:
        labelled = labels.to(self.device) != IGNORED
        extra = self.tokens - labels.shape[1] if labels.dim() == 2 else -1
        if extra < 0 or len(labels) != self.batch:
            raise _unknown(
                f"its labels have the shape {tuple(labels.shape)} for {self.batch} rows of {self.tokens} tokens"
            )
        mask = self.given.get("attention_mask")
        fits = isinstance(mask, Tensor) and mask.dim() == 2 and mask.shape[1] >= self.tokens
        self._check_one_text(mask[:, -self.tokens :].to(self.device) != 0 if fits else None)  # type: ignore[index]
        begins = labelled & ~torch.nn.functional.pad(labelled, (1, 0))[:, :-1]
        if not labels.is_meta and bool((begins.sum(1) > 1).any()):
            raise _unknown(
                "a row has several labelled parts, such as the answers of several turns, and each has another prompt",
                "Label the last answer alone",
            )
        first = labelled.int().argmax(1) + extra  # a learned prompt of PEFT is in front
        return torch.where(labelled.any(1), first, self.tokens + 1)

    def _by_call(self, call: GenerateCall) -> Boundary:
        if call.refusal is not None:
            raise _unknown(call.refusal)
        if self.past is not None:
            return call.columns - int(self.past)
        if call.length is None or (call.length == call.columns and self.tokens < call.columns):
            raise _unknown("its cache does not say how many tokens it holds")
        return call.columns - call.length + self.tokens

    def _by_cache(self) -> Boundary:
        past = self._known_past()
        if past:
            if self.tokens == 1:
                return 0
            raise _unknown(
                f"it goes on from a cache with {self.tokens} tokens at once, which may be more of the prompt or "
                "generated"
            )
        if self.given.get("past_key_values") is None and self.given.get("use_cache") is not True:
            raise _unknown(
                "it has no labels, goes on from no cache and is not made by generate",
                "Give labels=... in training, or use_cache=True for a pass over a prompt",
            )
        mask = self.given.get("attention_mask")
        if not (isinstance(mask, Tensor) and mask.dim() == 2):
            self._check_one_text(None)
            return self.tokens
        return self._ends((mask != 0).sum(1).to(self.device), 0)

    def _known_past(self) -> int:
        if self.past is None:
            raise _unknown("its cache does not say how many tokens it holds")
        return int(self.past)

    def _check_one_text(self, real: Tensor | None) -> None:
        """Raises a HeadEditError where a row holds several texts, each with positions of its own."""
        found = self.given.get("position_ids")
        if not isinstance(found, Tensor) or found.dim() != 2 or found.shape[1] != self.tokens or found.is_meta:
            return
        falls = found[:, 1:] <= found[:, :-1]
        if real is not None:
            falls = falls.to(real.device) & real[:, 1:] & real[:, :-1]
        if bool(falls.any()):
            raise _unknown(
                "its position_ids restart within a row, so it holds several texts", "Give each text a row of its own"
            )


def _past(given: Mapping[str, Any]) -> int | Tensor | None:
    """How many tokens the cache of a call holds; None where it does not say."""
    cache = given.get("past_key_values")
    if cache is None:
        states = [given.get(key) for key in ("cache_params", "state")]
        return None if any(state is not None for state in states) else 0
    try:
        length = cache.get_seq_length()
    except (AttributeError, ValueError, TypeError):
        return None
    return length.clone() if isinstance(length, Tensor) else int(length)  # a static cache counts in place


def _refusing(why: str) -> Callable[[], Boundary]:
    def refuse() -> Boundary:
        raise _unknown(why)

    return refuse


def _unknown(why: str, instead: str | None = None) -> HeadEditError:
    ways = _WAY_OUT if instead is None else f"{instead}; or call it within edits.prompt_lengths([...])"
    return HeadEditError(
        "It cannot be told which tokens of this pass are prompt, which these edits need (EditConfig(positions=...)): "
        f"{why}. {ways}."
    )


def _parameters(module: nn.Module) -> list[str]:
    return list(inspect.signature(module.forward).parameters)
