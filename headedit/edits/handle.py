"""The handle of the edits on a model: look at them, switch them, set them, save them, take them off."""

from typing import Literal

import torch
from torch import Tensor, nn

from headedit.edits.adapter import Adapter, Gates
from headedit.edits.adapter_set import AdapterSet
from headedit.edits.config import EditConfig
from headedit.edits.travelling import Travelling
from headedit.errors import HeadEditError
from headedit.io.notebook import html_of
from headedit.specs import MODULE_NAME, HeadSite, Spec


class HeadEdits(AdapterSet, Travelling):
    """Edits attached to a model; made by ``headedit.attach`` and ``headedit.load``.

    There is one adapter at first, ``default``. What is looked at, set, saved and merged is the active one.

    Fields:
        model: the model that is edited, the same object that was given to ``attach``. It holds the parameters of
            every adapter in its submodule ``headedit``.
        spec: where its heads are.
    """

    def __init__(self, model: nn.Module, spec: Spec, first: Adapter) -> None:
        self._was_trainable = [p for p in model.parameters() if p.requires_grad]
        for parameter in self._was_trainable:
            parameter.requires_grad_(False)
        super().__init__(model, spec, first)
        self._guard = None
        if spec.no_reentrant is not None:
            self._guard = model.register_forward_pre_hook(self._refuse_reentrant)

    @property
    def config(self) -> EditConfig:
        """The shape of the edits."""
        return self.module.config

    @property
    def sites(self) -> list[HeadSite]:
        """Where they are, ordered by layer."""
        return self.module.where

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

    @property
    def attached(self) -> bool:
        """False once ``detach`` was called."""
        return self.model._modules.get(MODULE_NAME) is self._adapters

    def detach(self) -> nn.Module:
        """Takes everything off: the model is exactly as it was before ``attach``, and is returned."""
        from headedit.edits.merge.merge import is_merged, unmerge

        if self.attached:
            if is_merged(self):
                unmerge(self)
            self._switches.remove()
            if self._guard is not None:
                self._guard.remove()
            del self.model._modules[MODULE_NAME]
            for parameter in self._was_trainable:
                parameter.requires_grad_(True)
        return self.model

    def gates(self, kind: str | None = None) -> Gates:
        """The gates in eval mode, by the estimator that the config names.

        Args:
            kind: the kind of site; by default attention, or what there is.

        Returns:
            Additive and multiplicative gates on the CPU, each [layers, heads]: a row for every layer of the
            stack, NaN where there is no edited head or no such vector. Where a layer has several sites of
            the kind, their heads stand side by side.
        """
        return self.module.gates(kind)

    def count_open(self) -> dict[str, tuple[int, int]]:
        """For ``offset`` and ``scale``: gates open and gates in all, over every site; for ``any``: heads.

        A gate is open where the deterministic gate of Louizos et al. is above 0, whatever ``eval_gate`` is.
        A vector without gates counts as open.
        """
        return self.module.count_open()

    def penalty(self, vector: Literal["offset", "scale"] | None = None, *, share: bool = False) -> Tensor:
        """Expected number of open gates, Σ P(g ≠ 0), differentiable (Louizos et al. 2018, equation 12).

        Args:
            vector: only the gates of this vector; by default both.
            share: divide by the number of gates.

        Returns:
            A scalar. A λ on the number is the loss that one gate must save to stay open, and means the
            same for a model of any size; a λ on the share is spread over all gates.
        """
        return self.module.penalty(vector, share=share)

    def set_head(
        self,
        layer: int,
        head: int,
        *,
        scale: float = 1.0,
        offset: Tensor | None = None,
        kind: str | None = None,
    ) -> None:
        """Writes the edit of one head by hand, in place of what it had: z' = scale · z + offset.

        The gate of a part that acts is opened for good, that of a part left out is closed.

        Args:
            layer: index of the layer.
            head: index of the head; with several sites a layer they are counted side by side.
            scale: factor on the head's output; 0 ablates it, 1 leaves it.
            offset: added to it, [head_dim]; None for nothing.
            kind: the kind of site; by default attention, or what there is.

        Raises:
            HeadEditError: there is no such head, or ``offset`` has another shape.
        """
        kind = self.module.kinds()[0] if kind is None else kind
        heads = 0
        for site, edit, first in self.module.columns(kind):
            if site.layer != layer:
                continue
            if first <= head < first + site.heads:
                if offset is not None and tuple(offset.shape) != (site.head_dim,):
                    raise HeadEditError(
                        f"offset: found shape {tuple(offset.shape)}, expected ({site.head_dim},) at {site.path}."
                    )
                edit.set_head(head - first, scale, offset)
                return
            heads = first + site.heads
        known = sorted({site.layer for site in self.sites if site.kind == kind})
        what = f"has {heads} heads, 0 to {heads - 1}" if heads else f"has no {kind} site; edited layers: {known}"
        raise HeadEditError(f"There is no head {head} in layer {layer} to set: the layer {what}.")

    def harden(self) -> None:
        """Fixes the gates at the value they have in eval mode, and drops the heads whose gates are closed.

        The values go into the vectors, so that every gate is exactly 0 or 1 from then on, in training mode too; a site
        without an open head costs nothing any more. With ``eval_gate="clip"`` the logits in eval mode stay the same to
        the bit; with ``expectation`` what E[g] leaves of a closed gate is dropped. The gates are no longer trained.
        """
        from headedit.edits.gate_set import harden

        harden(self.module)

    def snapshot(self) -> list[Tensor]:
        """Copies of all parameters, for ``restore``."""
        return [parameter.detach().clone() for parameter in self.module.parameters()]

    @torch.no_grad()
    def restore(self, snapshot: list[Tensor]) -> None:
        """Puts parameters back to what they were at a ``snapshot``."""
        for parameter, value in zip(self.module.parameters(), snapshot, strict=True):
            parameter.copy_(value)
        for edit in self.module:
            edit.idle = False

    def vector_parameters(self) -> list[nn.Parameter]:
        """Offsets and scales, for an optimiser group of their own."""
        return [p for name, p in self.module.named_parameters() if not name.endswith("_gate")]

    def gate_parameters(self) -> list[nn.Parameter]:
        """Gate logits that can be trained, for an optimiser group of their own."""
        return [p for name, p in self.module.named_parameters() if name.endswith("_gate") and p.requires_grad]

    def get_nb_trainable_parameters(self) -> tuple[int, int]:
        """Number of trainable parameters, and of all parameters of the model with its edits."""
        parameters = [*self.model.parameters(), *(() if self.attached else self.module.parameters())]
        trainable = sum(p.numel() for p in parameters if p.requires_grad)
        return trainable, sum(_numel(p) for p in parameters)

    def count_acting_parameters(self) -> int:
        """Numbers in the vectors whose gate is open: what is left of the edits when they are hardened."""
        return sum(int(edit.is_open(vector).sum()) * edit.head_dim for edit in self.module for vector in edit.vectors)

    def print_trainable_parameters(self) -> None:
        """Prints the number of trainable parameters, of all, and the share, as PEFT does."""
        trainable, total = self.get_nb_trainable_parameters()
        share = 100 * trainable / total
        print(f"trainable params: {trainable:,d} || all params: {total:,d} || trainable%: {share:.4f}")

    def _repr_html_(self) -> str | None:
        """A summary for notebooks; None, for which they show the text, where nothing draws one."""
        return html_of(self)

    def __repr__(self) -> str:
        opened = {kind: count for kind, count in self.count_open().items() if kind != "any"}
        counts = ", ".join(f"{kind} {n} of {total}" for kind, (n, total) in opened.items() if total)
        kinds = ", ".join(self.module.kinds())
        layers = len({site.layer for site in self.sites})
        others = f"; '{self.active_adapter}' of {', '.join(self.adapters)}" if len(self.adapters) > 1 else ""
        dial = "" if self.strength == 1 else f"; strength {self.strength:g}"
        state = "" if self.attached else ", detached"
        name = type(self.model).__name__
        return f"HeadEdits({name}, {layers} layers, {kinds}; gates open: {counts}{dial}{others}{state})"


def _numel(parameter: nn.Parameter) -> int:
    packed = getattr(parameter, "quant_state", None)  # a 4-bit weight counts its elements, not its bytes
    return int(torch.Size(packed.shape).numel()) if packed is not None else parameter.numel()
