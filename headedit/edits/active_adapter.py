"""The active adapter of a handle: its gates and parameters, read, set by hand and counted."""

from typing import Literal

import torch
from torch import Tensor, nn

from headedit.edits.adapter import Gates
from headedit.edits.adapter_set import AdapterSet
from headedit.edits.config import EditConfig
from headedit.edits.gate_set import harden
from headedit.errors import HeadEditError
from headedit.specs import HeadSite


class ActiveAdapter(AdapterSet):
    """The methods of ``HeadEdits`` that read, set and count the active adapter."""

    @property
    def config(self) -> EditConfig:
        """The shape of the edits."""
        return self.module.config

    @property
    def sites(self) -> list[HeadSite]:
        """Where the edits are, ordered by layer."""
        return self.module.sites

    def gates(self, kind: str | None = None) -> Gates:
        """The gates in eval mode, by the estimator that the config names.

        Args:
            kind: the kind of site; by default attention, or the only kind there is.

        Returns:
            The gates of offsets and of scales on the CPU, each [layers, heads]: a row for every layer of the stack,
            NaN where there is no edited head or no such vector. Where a layer has several sites of the kind, their
            heads are side by side.
        """
        return self.module.gates(kind)

    def count_open(self) -> dict[str, tuple[int, int]]:
        """For ``offset`` and ``scale``: open gates and all gates, over every site; for ``any``: heads.

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
        """Writes the edit of one head by hand, in place of its current one: z' = scale · z + offset.

        The gate of a part that is given is opened for good, the gate of a part left out is closed.

        Args:
            layer: index of the layer.
            head: index of the head; with several sites per layer they are counted side by side.
            scale: factor on the head's output; 0 ablates it, 1 leaves it.
            offset: added to it, [head_dim]; None for nothing.
            kind: the kind of site; by default attention, or the only kind there is.

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
                with self.writing("no head can be set"):
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
        with self.writing("they cannot be hardened"):
            harden(self.module)

    def check_trainable(self) -> None:
        """Raises a HeadEditError, with the way out, where training would change nothing that acts."""
        if not self.attached:
            raise HeadEditError("These edits are detached from their model; attach or load them again to train.")
        self._refuse_merged("they cannot be trained")
        if self.in_context():
            self.refuse_contexts("nothing can be trained")
        if self.disabled:
            raise HeadEditError("These edits are disabled, so nothing would be learnt: call enable_adapter_layers().")
        if not any(p.requires_grad for p in self.vector_parameters()):
            raise HeadEditError(
                "These edits are frozen, so nothing would be trained; PEFT's get_peft_model freezes all other "
                "parameters. Call edits.module.requires_grad_(True) first."
            )

    def snapshot(self) -> list[Tensor]:
        """Copies of all parameters, for ``restore``."""
        return [parameter.detach().clone() for parameter in self.module.parameters()]

    @torch.no_grad()
    def restore(self, snapshot: list[Tensor]) -> None:
        """Sets the parameters to their values at a ``snapshot``."""
        with self.writing("their values cannot be restored"):
            for parameter, value in zip(self.module.parameters(), snapshot, strict=True):
                parameter.copy_(value)
            for edit in self.module:
                edit.idle = False

    def vector_parameters(self) -> list[nn.Parameter]:
        """Offsets and scales, for an optimiser group of their own."""
        return [vector for edit in self.module for vector in edit.vectors.parameters()]

    def gate_parameters(self) -> list[nn.Parameter]:
        """Gate logits that can be trained, for an optimiser group of their own."""
        return [gate for edit in self.module for gate in edit.gates.parameters() if gate.requires_grad]

    def get_nb_trainable_parameters(self) -> tuple[int, int]:
        """Number of trainable parameters, and of all parameters of the model with its edits."""
        parameters = [*self.model.parameters(), *(() if self.attached else self.module.parameters())]
        trainable = sum(p.numel() for p in parameters if p.requires_grad)
        return trainable, sum(_numel(p) for p in parameters)

    def count_effective_parameters(self) -> int:
        """The number of values in vectors whose gate is open: what is left of the edits when they are hardened."""
        return self.module.count_effective_parameters()

    def print_trainable_parameters(self) -> None:
        """Prints the number of trainable parameters, of all, and the share, as PEFT does."""
        trainable, total = self.get_nb_trainable_parameters()
        share = 100 * trainable / total
        print(f"trainable params: {trainable:,d} || all params: {total:,d} || trainable%: {share:.4f}")


def _numel(parameter: nn.Parameter) -> int:
    packed = getattr(parameter, "quant_state", None)  # a 4-bit weight counts its elements, not its bytes
    return int(torch.Size(packed.shape).numel()) if packed is not None else parameter.numel()
