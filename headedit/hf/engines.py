"""Engines that run a model by code of their own, in which the hooks of its modules are not called.

vLLM compiles the forward pass of a model without guards and replays CUDA graphs, so that nothing that is put on a
module afterwards is noticed. It is found by how modules are called, not by what they are named: by compiled code that a
module keeps and calls in place of ``forward``, and by settings that a module carries. ``torch.compile`` alone is no
fault: what it compiled is dropped when hooks are put on.
"""

from typing import Any

from torch import nn

from headedit.errors import HeadEditError
from headedit.io.describe import with_article

PLUGIN = 'pip install "headedit[vllm]", then vllm serve MODEL'

_CALLED_WITH_HOOKS = {"forward", "_compiled_call_impl", "_compiled_call"}
"""Compiled code in these places is called by ``nn.Module.__call__`` or by transformers."""


def check_hooks_are_called(model: nn.Module) -> None:
    """Raises a HeadEditError where an engine runs a model in a way that calls no hooks, and names the ways out."""
    for name, module in model.named_modules():
        how = _why_not_called(module)
        if how is not None:
            where = f"{name}, {with_article(type(module).__name__)}," if name else "it"
            raise HeadEditError(
                f"The hooks of this {type(model).__name__} are not called: {where} {how}. Edits would be on it and do "
                f"nothing. In vLLM use the plugin, which gives each request its edit: {PLUGIN}. Or start the engine "
                "without compilation and graphs (enforce_eager=True in vLLM), or serve a checkpoint of headedit merge."
            )


def _why_not_called(module: nn.Module) -> str | None:
    """How a module runs code in which hooks are not called; None where it calls them."""
    fields = vars(module)
    replaced = type(module).__call__ is not nn.Module.__call__
    if replaced and fields.get("do_not_compile") is False:
        return "calls code that an engine compiles without guards, in place of its forward"
    if replaced and (fields.get("compiled") is True or any(_is_compiled(k, v) for k, v in fields.items())):
        return "calls code that an engine has compiled, in place of its forward"
    if replaced and (kept := _called_in_place_of_forward(module)) is not None:
        return f"calls its {kept}, which an engine has put there, in place of its forward"
    settings = fields.get("compilation_config")
    if _is_on(settings, "mode") or _is_on(settings, "level"):
        return "is compiled by an engine, as its compilation_config says"
    if _is_on(settings, "cudagraph_mode"):
        return "is replayed as CUDA graphs, as its compilation_config says"
    return None


def _called_in_place_of_forward(module: nn.Module) -> str | None:
    """The function that a module keeps and its class calls without going through ``nn.Module``; None for others."""
    names = getattr(getattr(type(module).__call__, "__code__", None), "co_names", ())
    if "__call__" in names or "_call_impl" in names or "_wrapped_call_impl" in names:
        return None
    kept = [name for name in names if name in vars(module) and name not in _CALLED_WITH_HOOKS]
    return next((name for name in kept if callable(vars(module)[name])), None)


def _is_compiled(name: str, value: Any) -> bool:
    """Whether a field holds a function that ``torch.compile`` made, for the module to call by itself."""
    return name not in _CALLED_WITH_HOOKS and not isinstance(value, nn.Module) and _by_dynamo(value)


def _by_dynamo(value: Any) -> bool:
    return callable(value) and hasattr(value, "_torchdynamo_orig_callable")


def _is_on(settings: Any, name: str) -> bool:
    """Whether a setting of an engine is there and not zero; enums have their value."""
    value = getattr(settings, name, None)
    return getattr(value, "value", value) not in (None, 0, False)
