"""Caches the output of the layers below the first edited one, which is the same for an example in every epoch."""

from headedit.training.prefix_cache.frozen import FrozenPrefix

__all__ = ["FrozenPrefix"]
