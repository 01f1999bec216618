"""The adapters of a model as its submodule ``headedit``: their handle, and what a state dict says of them.

A state dict with our keys describes itself: next to the parameters it holds the shape of every adapter, which one is
active, strength, frozen gates and sites without an open head. ``load_state_dict`` first makes the adapters on the model
fit, so that the model gives the logits of the one that the state was taken from.
"""

import sys
from typing import Any
from warnings import warn

import torch
from torch import Tensor, nn

from headedit.edits.adapter import Adapter
from headedit.edits.edited_sites import edited_sites
from headedit.edits.files.compatibility import refuse, site_differences, site_row
from headedit.edits.files.state import EXTRA_STATE, pack_state, set_frozen_gates, unpack_state
from headedit.edits.replicas import KeptWhole
from headedit.errors import HeadEditError
from headedit.specs import MODULE_NAME

_NO_STATE = "_EXTRA_STATE"  # the class that torch.distributed.checkpoint puts where a full state dict has none
_SAVERS = {("transformers.modeling_utils", "save_pretrained")}


class AttachedAdapters(KeptWhole, nn.ModuleDict):
    """The adapters of a model by name, as its submodule ``headedit``; it leads to their handle, in copies too."""

    _handle: Any
    _checking: Any

    def __init__(self) -> None:
        super().__init__()
        self._loading: dict[str, Any] | None = None
        self.register_load_state_dict_post_hook(_after_load)  # type: ignore[no-untyped-call]

    def put_on(self, model: nn.Module) -> None:
        """Makes this a submodule of the model, and has the model check state dicts before it loads them."""
        model.add_module(MODULE_NAME, self)
        self._checking = model.register_load_state_dict_pre_hook(self._before_load)  # type: ignore[no-untyped-call]

    def take_off(self, model: nn.Module) -> None:
        """Undoes ``put_on``."""
        self._checking.remove()
        del model._modules[MODULE_NAME]

    def get_extra_state(self) -> Tensor:
        """What a state dict says of the adapters besides their parameters, as bytes, uint8."""
        _warn_where_a_model_is_saved()
        handle = self._handle
        return pack_state(handle.model, handle.spec, self._by_name(), handle.active_adapter, handle.merged_adapters)

    def set_extra_state(self, state: object) -> None:
        """Makes the adapters fit a state; their parameters stay as they are, or are fresh.

        Raises:
            HeadEditError: it is damaged, or of another model; nothing is changed then.
        """
        record = self._read({EXTRA_STATE: state}, "")
        if record is not None:
            self._check_merged(self, record, {}, "")
            self._fit(record, None, "")
            self._settle(record)

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        key = prefix + EXTRA_STATE
        self._loading = self._read(state_dict, prefix)
        self._check_merged(self, self._loading, state_dict, prefix)
        if self._loading is not None:
            missing_keys += self._fit(self._loading, state_dict, prefix)
        state_dict = {name: value for name, value in state_dict.items() if name != key}
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        if key in missing_keys:
            missing_keys.remove(key)  # dealt with; or a state of the base model or of an older version, which has none

    def _before_load(self, model: nn.Module, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Raises a HeadEditError where a state does not fit, before the model has loaded any of it."""
        record = self._read(state_dict, f"{prefix}{MODULE_NAME}.")
        self._check_merged(model, record, state_dict, prefix)

    def _read(self, state_dict: dict[str, Any], prefix: str) -> dict[str, Any] | None:
        """The record in a state dict, which the model can fit; None where it has none."""
        state = state_dict.get(prefix + EXTRA_STATE)
        if state is None or type(state).__name__ == _NO_STATE:
            return None
        where = f"The state dict, at {prefix}{EXTRA_STATE}"
        record = unpack_state(state, where)
        differences: list[str] = []
        for name, part in record["adapters"].items():
            if name not in self:
                self._handle._check_name(name)
            try:
                adapter = self._fitting(name, part)
            except HeadEditError as error:
                differences.append(f"{name}: {error}")
                continue
            differences += site_differences(part["sites"], adapter.sites)
            for parameter_name, parameter in adapter.named_parameters():
                given = state_dict.get(f"{prefix}{name}.{parameter_name}", parameter)
                if given.shape != parameter.shape:
                    found, wanted = tuple(given.shape), tuple(parameter.shape)
                    differences.append(f"{name}.{parameter_name}: edits {found}, model {wanted}")
        refuse(differences, record, where)
        return record

    def _fitting(self, name: str, part: dict[str, Any]) -> Adapter:
        """The adapter of a name, if it has the recorded shape; or else a fresh one that has it, on this model."""
        current = self._modules.get(name)
        if (
            isinstance(current, Adapter)
            and current.config == part["config"]
            and [site_row(site) for site in current.sites] == part["sites"]
        ):
            return current
        names = {row["name"] for row in part["sites"]}
        sites = edited_sites(self._handle.model, self._handle.spec, part["config"], names=names)
        return Adapter(sites, part["config"])

    def _fit(self, record: dict[str, Any], state_dict: dict[str, Any] | None, prefix: str) -> list[str]:
        """Makes the adapters such that a state can be loaded into them, in the dtypes of the state.

        Returns the names of the parameters of adapters that neither the model nor the state has; they are left out.
        """
        absent: list[str] = []
        for name, part in record["adapters"].items():
            adapter = self._fitting(name, part)
            given = {
                parameter_name: (state_dict or {}).get(f"{prefix}{name}.{parameter_name}")
                for parameter_name, _ in adapter.named_parameters()
            }
            if name not in self and state_dict is not None and not any(t is not None for t in given.values()):
                absent += [f"{prefix}{name}.{parameter_name}" for parameter_name in given]
                continue
            if name not in self or self[name] is not adapter:
                self._put(name, adapter)
            for parameter_name, parameter in adapter.named_parameters():
                tensor = given[parameter_name]
                if tensor is not None and tensor.is_floating_point() and tensor.dtype != parameter.dtype:
                    parameter.data = parameter.data.to(tensor.dtype)
        return absent

    def _put(self, name: str, adapter: Adapter) -> None:
        """Puts an adapter in the place of the one of its name; parameters of the same name and shape stay."""
        frozen = False
        if name in self:
            replaced = self._by_name()[name]
            frozen = replaced._frozen is not None
            replaced.unfreeze()
            kept = dict(replaced.named_parameters())
            for path, fresh in list(adapter.named_parameters()):
                parameter = kept.get(path)
                if parameter is not None and parameter.shape == fresh.shape:
                    holder, _, own = path.rpartition(".")
                    setattr(adapter.get_submodule(holder), own, parameter)
        if frozen:
            adapter.freeze()
        self._handle._put(name, adapter)

    def _settle(self, record: dict[str, Any]) -> None:
        """Sets what a record says of the adapters besides their shape."""
        for name, adapter in self._by_name().items():
            part = record["adapters"].get(name)
            if part is not None:
                adapter.strength, adapter.date = part["strength"], part.get("date")
                set_frozen_gates(adapter, part["frozen_gates"])
                for i, edit in enumerate(adapter):
                    edit.idle = i in part["idle"]
        if record["active"] in self and record["active"] != self._handle.active_adapter:
            self._handle.set_adapter(record["active"])

    @torch.no_grad()
    def _check_merged(
        self, root: nn.Module, record: dict[str, Any] | None, state_dict: dict[str, Any], prefix: str
    ) -> None:
        """Raises a HeadEditError where the edits are in the weights of a state or of the model, and not of the other.

        While they are merged, only what the model holds already can be loaded: nothing else belongs to the weights that
        unmerging would put back.
        """
        merged = self._handle.merged_adapters
        if not merged:
            if record is not None and record["merged"]:
                raise HeadEditError(
                    f"This state dict was taken while {', '.join(record['merged'])} was merged into the weights, so "
                    "that the edits would act twice here. Take it after unmerge_adapter(); or call merge_and_unload() "
                    "there, and load the weights into a model without edits."
                )
            return
        own = root.state_dict()
        given = {key.removeprefix(prefix): value for key, value in state_dict.items() if key.startswith(prefix)}
        if not all(_same(value, own.get(key)) for key, value in given.items() if isinstance(value, Tensor)):
            raise HeadEditError(
                f"{', '.join(merged)} is merged into the weights of this model, which a state dict would overwrite: "
                "call unmerge_adapter() first, and load it then."
            )

    def _by_name(self) -> dict[str, Adapter]:
        return {name: adapter for name, adapter in self.items() if isinstance(adapter, Adapter)}


def handle_of(model: nn.Module) -> Any:
    """The handle of the edits on a model; None where it has none."""
    adapters = model._modules.get(MODULE_NAME)
    return adapters._handle if isinstance(adapters, AttachedAdapters) else None


def _after_load(adapters: AttachedAdapters, incompatible_keys: object) -> None:
    record, adapters._loading = adapters._loading, None
    if record is not None:
        adapters._settle(record)


def _same(a: Tensor, b: Tensor | None) -> bool:
    return b is not None and a.dtype == b.dtype and a.shape == b.shape and torch.equal(a.to(b.device), b)


def _warn_where_a_model_is_saved() -> None:
    """Says, where the state dict is asked for by the model's own ``save_pretrained``, how to read the edits in it.

    Whoever loads that folder as a model sees nothing but the names of keys that the model does not know.
    """
    frame, depth = sys._getframe(1), 1
    while frame.f_back is not None and frame.f_globals.get("__name__") in (__name__, nn.Module.__module__):
        frame, depth = frame.f_back, depth + 1
    if (frame.f_globals.get("__name__"), frame.f_code.co_name) in _SAVERS:
        warn(
            f"The edits are saved with the model, under keys that begin with '{MODULE_NAME}.'. from_pretrained gives "
            "the base model and lists these keys as unexpected; headedit.load(model, folder) then reads them from the "
            "same folder. edits.save_pretrained(folder) saves the edits alone, and edits.merge_and_unload() gives a "
            "plain model with the edits in its weights.",
            stacklevel=depth + 2,
        )
