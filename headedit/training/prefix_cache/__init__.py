"""Layers below the first edited one, computed once for each example: they give the same output in every epoch."""

from headedit.training.prefix_cache.frozen import FrozenPrefix

__all__ = ["FrozenPrefix"]
