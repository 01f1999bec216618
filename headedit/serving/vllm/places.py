"""The sites of a model, from our spec of it, and the module of vLLM that each one is."""

from collections.abc import Iterable
from typing import Any, NamedTuple

from torch import nn

from headedit.errors import HeadEditError
from headedit.serving.vllm.table import ARCHITECTURES
from headedit.specs import find_sites, find_spec

WAY_OUT = "Merge one edit into the weights instead, with 'headedit merge MODEL EDITS OUT', and serve the folder."


class Place(NamedTuple):
    """A site in vLLM's model.

    Fields:
        site: the site's name in saved edits.
        kind: of site, ``attention`` or ``mlp``.
        layer: index of the layer.
        width: size of the module's whole input, over all ranks.
        module: the name of vLLM's module.
    """

    site: str
    kind: str
    layer: int
    width: int
    module: str


def find_places(model: nn.Module, architecture: str, kinds: Iterable[str]) -> list[Place]:
    """The sites of some kinds in vLLM's model.

    Args:
        model: the model of transformers; it may be on the meta device.
        architecture: the name of the class that vLLM runs.
        kinds: of site.

    Raises:
        HeadEditError: the architecture is not in the table, or has no such sites there.
    """
    if architecture not in ARCHITECTURES:
        raise HeadEditError(
            f"Edits cannot be served on {architecture} in vLLM: it is not among the architectures on which vLLM's "
            f"modules were compared with those of transformers ({', '.join(sorted(ARCHITECTURES))}). {WAY_OUT}"
        )
    paths: dict[str, Any] = ARCHITECTURES[architecture]._asdict()
    wanted = list(kinds)
    for kind in wanted:
        if paths.get(kind) is None:
            raise HeadEditError(f"Edits of {kind} sites cannot be served on {architecture} in vLLM. {WAY_OUT}")
    sites = find_sites(model, find_spec(model), wanted)
    return [
        Place(site.name, site.kind, site.layer, site.width, paths[site.kind].format(layer=site.layer)) for site in sites
    ]
