"""Whether a model, or a part of it, runs compiled."""

from torch import nn

_INNER = "_orig_mod"
"""Where torch's OptimizedModule keeps the module that it compiles."""


def is_compiled(model: nn.Module) -> bool:
    """Whether a module of the model was compiled, in place, in a wrapper, or by transformers for generation."""
    return any("_compiled_call" in module.__dict__ or _runs_compiled(module) for module in model.modules())


def is_inside_compiled(model: nn.Module, path: str) -> bool:
    """Whether the module at a path, or one that holds it, was compiled to run so in each pass."""
    names = path.split(".")
    return any(_runs_compiled(model.get_submodule(".".join(names[:n]))) for n in range(len(names) + 1))


def uncompiled(module: nn.Module) -> nn.Module:
    """The module itself, without the wrapper that ``torch.compile`` has put around it."""
    return module._modules.get(_INNER) or module


def uncompiled_path(path: str) -> str:
    """A module's path without the wrappers of ``torch.compile``."""
    return ".".join(name for name in path.split(".") if name != _INNER)


def _runs_compiled(module: nn.Module) -> bool:
    fields = module.__dict__
    return (
        fields.get("_compiled_call_impl") is not None
        or hasattr(fields.get("forward"), "_torchdynamo_orig_callable")
        or _INNER in module._modules
    )
