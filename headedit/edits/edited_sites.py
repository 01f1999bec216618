"""The sites that edits of a config have on a model."""

from collections.abc import Collection

from torch import nn

from headedit.edits.config import EditConfig
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
        HeadEditError: the spec does not fit the model, or the config names layers or sites that the model lacks.
    """
    sites = find_sites(model, spec, config.sites, mlp_groups=config.mlp_groups)
    if names is not None:
        return [site for site in sites if site.name in names]
    layers = set(config.select_layers(sorted({site.layer for site in sites})))
    return [site for site in sites if site.layer in layers]
