"""Whether a model, or a part of it, runs compiled."""

from torch import nn


def is_compiled(model: nn.Module) -> bool:
    """Whether a module of the model was compiled in place, or by transformers for generation."""
    return any(
        module.__dict__.get("_compiled_call_impl") is not None or "_compiled_call" in module.__dict__
        for module in model.modules()
    )
