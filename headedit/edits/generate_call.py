"""The running call of ``generate`` that a pass belongs to, found on the stack of its thread: how wide its prompt is.

``generate`` gives the model no sign of where its prompt ends: a prompt may come in chunks, after the cache of an
earlier call, together with candidates, or again with every token where no cache is used. Its own frame has the prompt.
"""

import inspect
import sys
from dataclasses import dataclass
from functools import cache
from types import CodeType, FrameType
from typing import Any

from torch import Tensor, nn
from transformers import GenerationMixin

_CANDIDATES = "transformers.generation.candidate_generator"
_SAME_TOKENS = ("AssistedCandidateGenerator", "EarlyExitCandidateGenerator")
_ASIDE = ("LogitsProcessor", "LogitsProcessorList", "StoppingCriteria", "StoppingCriteriaList", "BaseStreamer")


@dataclass(frozen=True)
class GenerateCall:
    """A call of ``generate``.

    Fields:
        columns: how many columns its prompts have, with padding, and with what a cache held before.
        length: how many columns the texts have now, with generated tokens; None where that is not known.
        mask: of the prompts, 1 for tokens and 0 for padding, [rows, columns]; None where there is no padding.
        refusal: why it cannot be told which of its tokens are prompt; None where it can.
    """

    columns: int
    length: int | None = None
    mask: Tensor | None = None
    refusal: str | None = None


def running_generate(model: nn.Module) -> GenerateCall | None:
    """The call of ``generate`` that makes a pass of the model; None where the pass is not made by one.

    Passes that a logits processor, a stopping criterion or a streamer makes in it are their own.
    """
    frame: FrameType | None = sys._getframe(1)
    own: FrameType | None = None
    generator: Any = None
    length: int | None = None
    while frame is not None:
        if frame.f_code is _code_of_generate():
            if own is None:
                if not _is_of(frame.f_locals.get("self"), model):
                    return None
                own = frame
            elif generator is not None:
                own, generator = frame, None  # the other model's prompt, whose tokens these are too
        elif frame.f_globals.get("__name__") == _CANDIDATES:
            generator = frame.f_locals.get("self")
            name = type(generator).__name__
            if generator is not None and (own is None or name not in _SAME_TOKENS):
                return GenerateCall(0, refusal=f"the tokens of a {name} need not be those of the prompt")
        elif own is None and frame.f_code.co_varnames[:1] == ("self",):
            length = _length(frame) if length is None else length
            kinds = {kind.__name__ for kind in type(frame.f_locals.get("self")).__mro__}
            if not kinds.isdisjoint(_ASIDE):
                return None
        frame = frame.f_back
    return None if own is None else _call_of(own, length)


@cache
def _code_of_generate() -> CodeType:
    code: CodeType = inspect.unwrap(GenerationMixin.generate).__code__
    return code


def _is_of(caller: Any, model: nn.Module) -> bool:
    """Whether a call of a model's ``generate`` makes passes of ``model``, which may be in it or around it."""
    if caller is model or not isinstance(caller, nn.Module):
        return caller is model
    return any(part is model for part in caller.modules()) or any(part is caller for part in model.modules())


def _call_of(frame: FrameType, length: int | None) -> GenerateCall:
    found = frame.f_locals
    caller: Any = found.get("self")
    wrapper: Any = getattr(getattr(caller, "prepare_inputs_for_generation", None), "__self__", caller)
    if getattr(getattr(wrapper, "active_peft_config", None), "is_prompt_learning", False):
        return GenerateCall(0, refusal="PEFT puts learned tokens before the prompt")
    mask = (found.get("model_kwargs") or {}).get("attention_mask")
    if isinstance(mask, Tensor) and mask.dim() == 2 and not caller.config.is_encoder_decoder:
        return GenerateCall(mask.shape[1], length, mask)
    masked = getattr(found.get("generation_config"), "_mask_length", None)
    if isinstance(masked, int):
        return GenerateCall(masked, length)
    for name in ("input_ids", "inputs_tensor", "inputs"):
        given = found.get(name)
        if isinstance(given, Tensor) and given.dim() > 1 and given.shape[1]:
            return GenerateCall(given.shape[1], length)
    return GenerateCall(0, refusal="this generate does not say what its prompt is")


def _length(frame: FrameType) -> int | None:
    """How many columns the texts have, as the loop of ``generate`` in a frame counts them; None in other frames."""
    name, found = frame.f_code.co_name, frame.f_locals
    if name == "_beam_search":
        counted: Any = found.get("cur_len")
        return counted if isinstance(counted, int) else None
    given = found.get("input_ids")
    return given.shape[1] if name == "_sample" and isinstance(given, Tensor) and given.dim() > 1 else None
