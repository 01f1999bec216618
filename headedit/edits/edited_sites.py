"""The sites that edits of a config have on a model."""

from collections.abc import Collection

from torch import nn

from headedit.edits.config import EditConfig
from headedit.errors import HeadEditError
from headedit.hf.sharding import is_tensor_parallel
from headedit.specs import HeadSite, Spec, find_sites


def edited_sites(
    model: nn.Module, spec: Spec, config: EditConfig, names: Collection[str] | None = None
) -> list[HeadSite]:
    """The sites that edits of a config have on a model.

    Args:
        model: the model.
        spec: where its heads are.
        config: the shape of the edits.
        names: only the sites of these names, in place of the config's layers.

    Raises:
        HeadEditError: the spec does not fit the model, the config names layers or sites that the model lacks, or the
            heads are split over processes.
    """
    sites = find_sites(model, spec, config.sites, mlp_groups=config.mlp_groups)
    if is_tensor_parallel(model, [site.module for site in sites]):
        raise HeadEditError(
            f"This {type(model).__name__} is tensor-parallel: each process has some of its heads, and edits are of "
            "all. Load it without tp_plan, whole or with device_map, or shard it by FSDP2 after attaching."
        )
    if names is not None:
        return [site for site in sites if site.name in names]
    layers = set(config.select_layers(sorted({site.layer for site in sites})))
    return [site for site in sites if site.layer in layers]
