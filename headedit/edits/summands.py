"""Whether edits can be added or copied: they are of the same sites, and finite."""

from collections.abc import Mapping

from torch import Tensor

from headedit.edits.positions import IN_WORDS
from headedit.errors import HeadEditError
from headedit.specs import HeadSite


def site_shapes(sites: list[HeadSite]) -> dict[str, str]:
    """The shape of every site by its name, in words."""
    return {site.name: f"{site.heads} heads of {site.head_dim}" for site in sites}


def check_same_sites(ours: list[HeadSite], theirs: list[HeadSite]) -> None:
    """Raises a HeadEditError that names the first difference where edits are of other sites."""
    a, b = site_shapes(ours), site_shapes(theirs)
    differing = [name for name in {**a, **b} if a.get(name) != b.get(name)]
    if differing:
        name = differing[0]
        raise HeadEditError(
            f"These edits cannot be added: {len(differing)} of their sites differ, such as {name}: "
            f"{a.get(name, 'no site')} against {b.get(name, 'no site')}. Add edits of the same layers, sites and model "
            "shape."
        )


def check_same_positions(ours: str, theirs: str) -> None:
    """Raises a HeadEditError where edits act on other tokens."""
    if ours != theirs:
        raise HeadEditError(
            f"These edits do not go together: one acts on {IN_WORDS[ours]} (positions={ours!r}), another on "
            f"{IN_WORDS[theirs]} (positions={theirs!r})."
        )


def check_finite(vectors: Mapping[str, Tensor], site: HeadSite) -> None:
    """Raises a HeadEditError where a vector of a site is NaN or infinite."""
    for name, vector in vectors.items():
        if not vector.isfinite().all():
            raise HeadEditError(
                f"These edits are not finite: {name} at {site.name} is NaN or infinite. Give smaller factors, and "
                "check the edits that they are made of."
            )
