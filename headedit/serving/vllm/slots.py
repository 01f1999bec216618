"""The settings of served edits, in the place where vLLM keeps those of LoRA adapters.

vLLM carries an adapter's name with each request, holds requests back while all slots are taken, and keys the prefix
cache by the adapter; it does so for whatever stands in ``VllmConfig.lora_config``. The settings are put there once the
config is made, so that nothing that vLLM does to the model for a LoRA is done: the compiled model stays compiled.
"""

import hashlib
from typing import Any

from vllm.config import LoRAConfig

from headedit.serving.saved_edit import SavedEdit
from headedit.serving.vllm.places import Place
from headedit.version import __version__

SLOTS = 32
"""How many edits a batch can have, by default; a strength of its own counts as an edit."""


class EditSlots(LoRAConfig):  # type: ignore[misc]
    """What the processes of an engine know of the edits when they start.

    Fields:
        places: the sites in vLLM's model.
        edits: those that are served from the start.
    """

    places: list[Place]
    edits: list[SavedEdit]

    def compute_hash(self) -> str:
        """A hash of what the compiled model depends on, by which vLLM finds it again in its cache on disk."""
        return hashlib.sha256(repr((__version__, self.max_loras, self.places)).encode()).hexdigest()


def edit_slots(slots: int, places: list[Place], edits: list[SavedEdit], model_config: Any) -> EditSlots:
    """The settings of served edits.

    Args:
        slots: how many edits a batch can have.
        places: the sites in vLLM's model.
        edits: those that are served from the start.
        model_config: vLLM's.
    """
    settings = EditSlots(max_lora_rank=1, max_loras=slots)
    settings.places, settings.edits = places, edits
    settings.verify_with_model_config(model_config)
    return settings


def slots_of(vllm_config: Any) -> EditSlots | None:
    """The settings in a config of vLLM; None where the engine serves no edits."""
    found = vllm_config.lora_config
    return found if isinstance(found, EditSlots) else None
