"""The sites of one rank: vLLM's modules, each with the vectors of its share of the heads."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn

from headedit.errors import HeadEditError
from headedit.serving.vllm.buffers import add_buffers
from headedit.serving.vllm.places import WAY_OUT, Place


class RankSite(NamedTuple):
    """A site on one rank.

    Fields:
        module: vLLM's.
        share: the part of the site's input that this rank has.
    """

    module: nn.Module
    share: slice


def rank_sites(model: nn.Module, places: Sequence[Place], slots: int, slot_of_token: Tensor) -> dict[str, RankSite]:
    """The sites that a rank has, by name, with buffers; several pipeline stages are refused at start.

    Args:
        model: vLLM's, not yet compiled.
        places: all sites.
        slots: how many edits a batch can have.
        slot_of_token: the slot of each token, [most tokens].

    Raises:
        HeadEditError: a module is not there, or takes another input than the site has.
    """
    modules = dict(model.named_modules())
    sites: dict[str, RankSite] = {}
    for place in places:
        module = modules.get(place.module)
        if module is None:
            raise HeadEditError(
                f"Edits cannot be served on this {type(model).__name__}: vLLM's model has no module {place.module}. "
                f"{WAY_OUT}"
            )
        share = _share(module, place)
        add_buffers(module, slots, share.stop - share.start, slot_of_token)
        sites[place.site] = RankSite(module, share)
    return sites


def _share(module: nn.Module, place: Place) -> slice:
    """The part of a site's input that a rank has: all of it, or an equal one in the order of the ranks."""
    from vllm.model_executor.layers.linear import ReplicatedLinear, RowParallelLinear

    split = isinstance(module, RowParallelLinear) and module.input_is_parallel
    if not split and not isinstance(module, ReplicatedLinear):
        raise HeadEditError(
            f"Edits cannot be served at {place.module}: vLLM has a {type(module).__name__} there, which is not known "
            f"to take the heads in their order. {WAY_OUT}"
        )
    layer: Any = module
    ranks, rank = (layer.tp_size, layer.tp_rank) if split else (1, 0)
    width = int(layer.input_size_per_partition if split else layer.input_size)
    if width * ranks != place.width:
        raise HeadEditError(
            f"Edits cannot be served at {place.module}: it takes {width} inputs on each of {ranks} ranks, and the site "
            f"has {place.width}. {WAY_OUT}"
        )
    return slice(rank * width, (rank + 1) * width)
