"""The state of a handle in one record, as ``get_model_status`` of PEFT gives it."""

from dataclasses import dataclass

from headedit.edits.active_adapter import ActiveAdapter


@dataclass(frozen=True, kw_only=True)
class ModelStatus:
    """The adapters of a model and their state; the fields are those of PEFT's ``TunerModelStatus``.

    Fields:
        base_model_type: the class of the model.
        adapter_model_type: the class of the handle.
        trainable_params: the number of trainable parameters.
        total_params: the number of all parameters, of the edits too.
        num_adapter_layers: the number of edited sites of the active adapter.
        enabled: whether the edits act, in the hooks or in the weights.
        active_adapters: the name of the active adapter, in a list.
        merged_adapters: the names of the adapters in the weights.
        requires_grad: for each adapter, whether any of its parameters is trainable now.
        available_adapters: the names of all adapters.
        devices: for each adapter, the devices of its parameters.
    """

    base_model_type: str
    adapter_model_type: str
    trainable_params: int
    total_params: int
    num_adapter_layers: int
    enabled: bool
    active_adapters: list[str]
    merged_adapters: list[str]
    requires_grad: dict[str, bool]
    available_adapters: list[str]
    devices: dict[str, list[str]]


def model_status(edits: ActiveAdapter) -> ModelStatus:
    """The state of a handle."""
    trainable, total = edits.get_nb_trainable_parameters()
    parameters = {name: list(edits[name].parameters()) for name in edits.adapters}
    return ModelStatus(
        base_model_type=type(edits.model).__name__,
        adapter_model_type=type(edits).__name__,
        trainable_params=trainable,
        total_params=total,
        num_adapter_layers=len(edits.sites),
        enabled=edits.attached and not edits.disabled,
        active_adapters=edits.active_adapters,
        merged_adapters=edits.merged_adapters,
        requires_grad={name: any(p.requires_grad for p in found) for name, found in parameters.items()},
        available_adapters=edits.adapters,
        devices={name: sorted({str(p.device) for p in found}) for name, found in parameters.items()},
    )
