"""Where the heads are: the spec format, the registry, and a spec applied to a live model."""

from headedit.specs.registry import find_spec, packaged_specs
from headedit.specs.schema import Spec, read_spec
from headedit.specs.sites import MODULE_NAME, HeadSite, find_sites

__all__ = ["MODULE_NAME", "HeadSite", "Spec", "find_sites", "find_spec", "packaged_specs", "read_spec"]
