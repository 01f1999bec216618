"""What the registry knows: every spec, what it covers, and which causal LMs of transformers are covered."""

from dataclasses import dataclass
from pathlib import Path

from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from headedit.specs.registry import all_specs
from headedit.specs.schema import Spec


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One spec file.

    Fields:
        spec: what it says.
        model_types: the types that are looked up in it, those that a spec of higher rank claims left out.
    """

    spec: Spec
    model_types: list[str]


def catalogue() -> list[Entry]:
    """Every spec that is looked up, by the name of its file.

    Raises:
        HeadEditError: a spec file of the user or of a package is faulty.
    """
    found: dict[str, list[str]] = {}
    specs: dict[str, Spec] = {}
    for model_type, spec in all_specs().items():
        found.setdefault(spec.source, []).append(model_type)
        specs[spec.source] = spec
    order = sorted(found, key=lambda source: (Path(source).name, source))
    return [Entry(spec=specs[source], model_types=sorted(found[source])) for source in order]


def types_without_spec() -> list[str]:
    """The causal-LM types of the installed transformers that no spec knows, in alphabetical order.

    Raises:
        HeadEditError: as for ``catalogue``.
    """
    return sorted(set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES) - set(all_specs()))


def counts() -> list[tuple[str, str]]:
    """Of the causal-LM types of the installed transformers, how many have what, as (what, how many).

    Raises:
        HeadEditError: as for ``catalogue``.
    """
    specs = all_specs()
    types = sorted(set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES))
    edited = [specs[t] for t in types if t in specs and specs[t].sites]
    refused = [t for t in types if t in specs and not specs[t].sites]
    missing = types_without_spec()
    merges = [spec.merge for spec in edited]

    def having(kind: str) -> str:
        return str(sum(kind in spec.kinds() for spec in edited))

    return [
        ("causal-LM types of transformers", str(len(types))),
        ("edited", str(len(edited))),
        ("refused, with the reason", f"{len(refused)}: {', '.join(refused)}"),
        ("without a spec", f"{len(missing)}{': ' if missing else ''}{', '.join(missing)}"),
        ("with sites at attention heads", having("attention")),
        ("with sites at the heads of another mixer", having("linear")),
        (
            "with sites at the MLP, in a family where layers have one",
            having("mlp"),
        ),
        ("with a gate between the heads and the projection", str(sum("gated" in spec.position for spec in edited))),
        ("whose projection has a bias that an offset merges into", str(merges.count(None))),
        ("whose config can give it one", str(sum(m is not None and m.bias_key is not None for m in merges))),
        ("that merge by exporting to another type", str(sum(m is not None and m.rehome is not None for m in merges))),
        ("that cannot merge an offset", str(sum(m is not None and m.never is not None for m in merges))),
    ]
