"""The handle of the edits on a model: look at them, switch them, set them, save them, merge them, take them off."""

from collections.abc import Mapping
from os import PathLike
from typing import Any

import torch
from torch import nn

from headedit.edits.active_adapter import ActiveAdapter
from headedit.edits.adapter import Adapter
from headedit.edits.arguments import folder_to_save_in, naming_contents, saved_edits
from headedit.edits.files.hub import push_to_hub
from headedit.edits.files.storage import read_adapter, save
from headedit.edits.merge.control_vector import to_control_vector
from headedit.edits.merge.export import export_as, must_export
from headedit.edits.merge.fold import check_attached
from headedit.edits.merge.merge import check_not_disabled, merge, unmerge
from headedit.edits.merge.peft import to_peft
from headedit.edits.positions import IN_WORDS
from headedit.edits.status import ModelStatus, model_status
from headedit.errors import HeadEditError
from headedit.io.notebook import html_of
from headedit.specs import Spec

_INTERNAL = frozenset(
    (
        "applying",
        "change_weights",
        "check_acting",
        "check_trainable",
        "deterministic_gates",
        "in_context",
        "measured",
        "refuse_contexts",
        "writing",
    )
)
"""Methods that training, evaluation and the recipes call, and nobody else needs to."""


class HeadEdits(ActiveAdapter):
    """Edits attached to a model; made by ``headedit.attach`` and ``headedit.load``.

    There is one adapter at first, ``default``. What is looked at, set, saved and merged is the active one.

    Fields:
        model: the model that is edited, the same object that was given to ``attach``. It holds the parameters of
            every adapter in its submodule ``headedit``.
        spec: where its heads are.
        merged: what a merge changed in the model's weights; None while the edits are not merged.
    """

    def __init__(self, model: nn.Module, spec: Spec, first: Adapter) -> None:
        self._was_trainable = [p for p in model.parameters() if p.requires_grad]
        for parameter in self._was_trainable:
            parameter.requires_grad_(False)
        super().__init__(model, spec, first)
        self._guard = None
        if spec.no_reentrant is not None:
            self._guard = model.register_forward_pre_hook(self._refuse_reentrant)

    def _refuse_reentrant(self, model: nn.Module, args: object) -> None:
        if not (model.training and torch.is_grad_enabled()):
            return
        for module in model.modules():
            chosen = getattr(getattr(module, "_gradient_checkpointing_func", None), "keywords", {})
            if getattr(module, "gradient_checkpointing", False) and chosen.get("use_reentrant", False):
                raise HeadEditError(
                    f"Reentrant gradient checkpointing gives wrong gradients on {type(model).__name__}: "
                    f"{self.spec.no_reentrant}. Turn it on with use_reentrant=False."
                )

    def detach(self) -> nn.Module:
        """Takes everything off: the model is exactly as it was before ``attach``, and is returned."""
        if self.attached:
            if self.merged is not None:
                unmerge(self)
            self._stop()
            if self._guard is not None:
                self._guard.remove()
            self._adapters.take_off(self.model)
            for parameter in self._was_trainable:
                parameter.requires_grad_(True)
        return self.model

    def unload(self) -> nn.Module:
        """Takes the edits off without merging them, and returns the base model; the same as ``detach``."""
        return self.detach()

    def get_base_model(self) -> nn.Module:
        """The model itself; it stays edited until ``detach``, and ``disable_adapter()`` shows it unedited."""
        return self.model

    def get_model_status(self) -> ModelStatus:
        """Which adapters there are, which one acts, is trained or is merged, and where their parameters are."""
        return model_status(self)

    def load_adapter(self, model_id: "str | PathLike[str]", adapter_name: str, *, revision: str | None = None) -> None:
        """Adds saved edits under a name; they do nothing until ``set_adapter`` or ``route`` names them.

        Args:
            model_id: a folder that ``save_pretrained`` wrote, of the edits or of a model with edits, or the id of a
                repository of edits on the Hugging Face hub.
            adapter_name: letters, digits, ``-`` and ``_``.
            revision: the revision of a hub repository.

        Raises:
            HeadEditError: as for ``load``, or there is an adapter of this name.
        """
        self._check_name(adapter_name)
        folder = saved_edits(model_id)
        with naming_contents(folder):
            self._put(adapter_name, read_adapter(self.model, self.spec, folder, revision))

    def save_pretrained(
        self,
        save_directory: "str | PathLike[str]",
        *,
        hardened: bool = False,
        card: bool | Mapping[str, Any] = True,
        metrics: Mapping[str, float] | None = None,
    ) -> None:
        """Writes ``headedit.safetensors`` into a folder in one step, a copy of its config to read, and a model card.

        A save that is killed at any moment leaves the old edits or the new ones. The copy is ``headedit_config.json``.

        Args:
            save_directory: the folder; it is made if it does not exist.
            hardened: store only the open heads, with their effective values; hardened edits are always stored so.
            card: write the card, ``README.md``, unless the folder has one that headedit did not write; or what it is to
                say for the hub: ``license``, ``license_name``, ``license_link``, ``datasets``, ``language``, ``tags``,
                ``base_model`` and ``pipeline_tag``. By default the license is the one that the base model's card
                names, where that is on disk, and the data sets are those of the run in this folder.
            metrics: names and values that the card reports.

        Raises:
            HeadEditError: a vector or gate is NaN, infinite, sharded or on the meta device, the folder cannot be made
                or written, a metric is not a number, or a field is not one of a card; nothing on disk has changed then,
                unless the card alone cannot be written.
        """
        save(self, folder_to_save_in(save_directory), hardened=hardened, card=card, metrics=metrics)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        token: str | bool | None = None,
        revision: str | None = None,
        commit_message: str | None = None,
        hardened: bool = False,
        metrics: Mapping[str, float] | None = None,
        card: Mapping[str, Any] | None = None,
    ) -> str:
        """Uploads the edits and their card to the hub, and returns the commit's address.

        Args:
            repo_id: the id of the repository, ``name`` or ``owner/name``; it is made if it does not exist.
            private: whether a new repository is private; by default as the owner's account says.
            token: a token of the hub; by default the one that ``hf auth login`` stored.
            revision: a branch to upload to, made if it does not exist; by default the main one.
            commit_message: by default "Upload edits by headedit".
            hardened: upload only the open heads; see ``save_pretrained``.
            metrics: names and values for the card.
            card: what the card says for the hub, such as ``license`` and ``datasets``; see ``save_pretrained``.

        Raises:
            HeadEditError: a vector or gate is not finite, the hub refuses or cannot be reached, a metric is not a
                number, or a field is not one of a card.
        """
        return push_to_hub(
            self,
            repo_id,
            private=private,
            token=token,
            revision=revision,
            commit_message=commit_message,
            hardened=hardened,
            metrics=metrics,
            card=card,
        )

    def merge_adapter(self, adapter_names: list[str] | None = None, *, safe_merge: bool = False) -> None:
        """Folds edits, with their effective values, into the model's weights, in place; the hooks then do nothing.

        It waits for the passes of other threads, other than those of compiled models, which it does not notice.

        Args:
            adapter_names: the adapters to merge, several as their sum; by default the active one.
            safe_merge: refuse results that are NaN or infinite.

        Raises:
            HeadEditError: the edits are merged, disabled, detached or act on some tokens alone, a thread is in a
                context such as ``route()``, a name is not known, a weight is quantized, offloaded, sharded, shared or
                not a projection's, an offset needs a bias that the model cannot have, or with ``safe_merge`` a result
                is not finite; nothing is changed then.
        """
        merge(self, adapter_names, safe_merge=safe_merge)

    def unmerge_adapter(self) -> None:
        """Puts the original weights and config back, bit for bit; the edits act through the hooks again.

        Raises:
            HeadEditError: the edits are not merged.
        """
        unmerge(self)

    def merge_and_unload(
        self, progressbar: bool = False, *, safe_merge: bool = False, adapter_names: list[str] | None = None
    ) -> nn.Module:
        """Merges edits and detaches: a plain model, ready for ``save_pretrained``.

        Args:
            progressbar: show a bar over the sites.
            safe_merge: refuse results that are NaN or infinite.
            adapter_names: the adapters to merge, several as their sum; by default the active one, or those that are
                merged already.

        Returns:
            The model itself; or, where its projections can have no bias and its spec names a type that computes the
            same (Qwen2, Mistral: Llama), a model of that type, and the model as it was before ``attach``.

        Raises:
            HeadEditError: as for ``merge_adapter``; the edits stay attached then.
        """
        if self.merged is None:
            check_attached(self)
            check_not_disabled(self)
            if must_export(self, adapter_names):
                plain = export_as(self, adapter_names, safe_merge=safe_merge, progressbar=progressbar)
                self.detach()
                return plain
            merge(self, adapter_names, safe_merge=safe_merge, progressbar=progressbar)
        elif adapter_names not in (None, self.merged_adapters):
            raise HeadEditError(
                f"{', '.join(self.merged_adapters)} is merged already; call unmerge_adapter() to merge others."
            )
        merged, self.merged = self.merged, None
        assert merged is not None
        self.detach()
        for module, bias in merged.biases:
            weight = module._parameters["weight"]
            bias.requires_grad_(weight is not None and weight.requires_grad)
        return self.model

    def to_peft(self, directory: "str | PathLike[str]", *, form: str = "auto") -> None:
        """Writes the edits as a PEFT adapter: (IA)³, or LoRA where there is an offset.

        Args:
            directory: the folder; it is made if it does not exist.
            form: ``auto``, as above; or ``lora``, a LoRA without a bias and of one rank, as servers such as vLLM read
                it, of edits without an offset. The rank is the largest number of scaled input dimensions of a site.

        Raises:
            HeadEditError: a value is NaN or infinite, the edits act on some tokens alone, PEFT is not installed, or
                cannot hold an edit of these sites; or with ``form="lora"`` there is an offset.
        """
        to_peft(self, folder_to_save_in(directory), form)

    def to_control_vector(self, path: "str | PathLike[str]", *, approximate: bool = False) -> float:
        """Writes offsets as a control vector of llama.cpp, a GGUF file for its option ``--control-vector``.

        llama.cpp adds it to the output of whole layers. That equals the edits where attention and MLP stand side by
        side in a layer (GPT-NeoX, Falcon, Phi, Cohere); elsewhere, as for Llama, it is refused unless ``approximate``.

        Args:
            path: the file; its folder is made if it does not exist.
            approximate: write it also where it is not the same function as the edits.

        Returns:
            How far the logits are off, as a share of what the edits change; 0 where that is not more than rounding.

        Raises:
            HeadEditError: the edits have a scale, act on some tokens alone or at the first layer, the model is not in
                float32, the package gguf is not installed, or the vectors would be another function.
        """
        return to_control_vector(self, path, approximate=approximate)

    def __dir__(self) -> list[str]:
        """The names that somebody who edits a model needs; what the package itself calls is left out."""
        return sorted(name for name in super().__dir__() if not name.startswith("_") and name not in _INTERNAL)

    def _repr_html_(self) -> str | None:
        """A summary for notebooks; None where nothing draws one, so that they show the text."""
        return html_of(self)

    def __repr__(self) -> str:
        opened = {kind: count for kind, count in self.count_open().items() if kind != "any"}
        counts = ", ".join(f"{kind} {n} of {total}" for kind, (n, total) in opened.items() if total)
        kinds = ", ".join(self.module.kinds())
        layers = len({site.layer for site in self.sites})
        others = f"; '{self.active_adapter}' of {', '.join(self.adapters)}" if len(self.adapters) > 1 else ""
        positions = self.config.positions
        where = "" if positions == "all" else f"; on {IN_WORDS[positions]}"
        dial = "" if self.strength == 1 else f"; strength {self.strength:g}"
        merged = f"; merged: {', '.join(self.merged_adapters)}" if self.merged is not None else ""
        state = "" if self.attached else ", detached"
        name = type(self.model).__name__
        return f"HeadEdits({name}, {layers} layers, {kinds}; gates open: {counts}{where}{dial}{others}{merged}{state})"
