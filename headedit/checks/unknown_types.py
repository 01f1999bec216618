"""Lists the causal-LM types of the installed transformers that no spec knows.

``python -m headedit.checks.unknown_types`` ends with 1 where there are any, so that a scheduled job with the newest
transformers fails when a type is new.
"""

import sys
from collections.abc import Mapping

import transformers
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from headedit.specs.catalogue import types_without_spec


def main() -> int:
    """Prints each type with its model class, and returns the exit status: 1 where there are any."""
    classes: Mapping[str, object] = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    missing = types_without_spec()
    print(f"transformers {transformers.__version__}: {len(missing)} of {len(classes)} causal-LM types have no spec.")
    for model_type in missing:
        print(f"{model_type}: {classes[model_type]}")
    if missing:
        print("Draft a spec with 'headedit spec draft MODEL --output FILE', complete it, and add it to arch_specs.")
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
