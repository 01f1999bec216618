"""The active adapter of a handle: its gates and parameters, read, set by hand and counted."""

from typing import Any, Literal, NoReturn

import torch
from torch import Tensor, nn

from headedit.edits.adapter import Gates
from headedit.edits.adapter_set import AdapterSet
from headedit.edits.config import EditConfig
from headedit.edits.gate_set import harden
from headedit.edits.site_edit import VECTORS
from headedit.edits.values import head_vector, whole_number
from headedit.errors import HeadEditError, suggest
from headedit.io.describe import describe
from headedit.specs import HeadSite
from headedit.specs.schema import SITE_KINDS

_INDEX = "a whole number, counted from 0"


class ModelAttributeError(HeadEditError, AttributeError):
    """An attribute of the model was asked of the handle, as with PEFT's models."""


class ActiveAdapter(AdapterSet):
    """The methods of ``HeadEdits`` that read, set and count the active adapter."""

    def __call__(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refuses to be called as PEFT's models are: the model itself is edited.

        Raises:
            HeadEditError: always.
        """
        raise HeadEditError(
            "The handle is not the model: call the model, which is edited in place, or edits.model(...)."
        )

    def __getattr__(self, name: str) -> NoReturn:
        model = self.__dict__.get("model")
        if model is not None and not name.startswith("_") and hasattr(model, name):
            raise ModelAttributeError(
                f"The handle has no '{name}', but its model, which is edited in place, has: edits.model.{name}."
            )
        raise AttributeError(f"'{type(self).__name__}' object has no attribute '{name}'", name=name, obj=self)

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
        if vector not in (None, *VECTORS):
            raise HeadEditError(
                f"vector: found {describe(vector)}, expected one of {', '.join(VECTORS)}."
                f"{suggest(vector, VECTORS, elsewhere=True)}"
            )
        return self.module.penalty(vector, share=share)

    def set_head(
        self,
        layer: int,
        head: int,
        *,
        scale: Any = 1.0,
        offset: Any = None,
        kind: str | None = None,
    ) -> None:
        """Writes the edit of one head by hand, in place of its current one: z' = scale · z + offset.

        The gate of a part that is given is opened for good, the gate of a part left out is closed.

        Args:
            layer: index of the layer; -1 is the last layer of the model.
            head: index of the head; with several sites per layer they are counted side by side, and -1 is the last.
            scale: factor on the head's output, a number or a list, array or tensor [head_dim]; 0 ablates it, 1 leaves
                it, as if it were left out.
            offset: added to it, a list, array or tensor [head_dim]; None for nothing.
            kind: the kind of site; by default attention, or the only kind there is.

        Raises:
            HeadEditError: there is no such head, the edits are merged or have no such vector, or ``scale`` or
                ``offset`` has another shape, is NaN or infinite, or holds no numbers; nothing is changed then.
        """
        kind = self.module.kinds()[0] if kind is None else kind
        if kind not in SITE_KINDS:
            kinds = self.module.kinds()
            raise HeadEditError(
                f"kind: found {describe(kind)}, expected {' or '.join(kinds)}.{suggest(kind, kinds, elsewhere=True)}"
            )
        columns = list(self.module.columns(kind))
        wanted, index = whole_number(layer, "layer", _INDEX), whole_number(head, "head", _INDEX)
        layers = max((site.layers for site, _, _ in columns), default=0)
        in_layer = [column for column in columns if column[0].layer == (wanted + layers if wanted < 0 else wanted)]
        heads = sum(site.heads for site, _, _ in in_layer)
        place = index + heads if index < 0 else index
        for site, edit, first in in_layer:
            if first <= place < first + site.heads:
                dtype = next(edit.vectors.parameters()).dtype
                factor = head_vector(scale, "scale", site.head_dim, dtype, scalar=True)
                added = None if offset is None else head_vector(offset, "offset", site.head_dim, dtype)
                with self.writing("no head can be set"):
                    edit.set_head(place - first, factor, added)
                return
        known = sorted({site.layer for site, _, _ in columns})
        what = f"has {heads} heads, 0 to {heads - 1}" if heads else f"has no {kind} site; edited layers: {known}"
        raise HeadEditError(f"There is no head {head} in layer {layer} to set: the layer {what}.")

    def harden(self) -> None:
        """Fixes the gates at the value they have in eval mode, and drops the heads whose gates are closed.

        The values go into the vectors, so that every gate is exactly 0 or 1 from then on, in training mode too; a site
        without an open head costs nothing any more. With ``eval_gate="clip"`` the logits in eval mode stay the same to
        the bit; with ``expectation`` what E[g] leaves of a closed gate is dropped. The gates are no longer trained.

        Raises:
            HeadEditError: the edits are merged.
        """
        with self.writing("they cannot be hardened"):
            harden(self.module)

    def check_acting(self, done: str, gained: str) -> None:
        """Raises a HeadEditError, with the way out, where what is written into the edits would not act.

        Args:
            done: what is to be done with the edits, for the message, such as "trained".
            gained: what would be in vain, such as "learnt".
        """
        if not self.attached:
            raise HeadEditError(
                f"These edits are detached from their model; attach or load them again before they are {done}."
            )
        self._refuse_merged(f"they cannot be {done}")
        if self.in_context():
            self.refuse_contexts(f"nothing can be {done}")
        if self.disabled:
            raise HeadEditError(
                f"These edits are disabled, so nothing would be {gained}: call enable_adapter_layers()."
            )

    def check_trainable(self) -> None:
        """Raises a HeadEditError, with the way out, where training would change nothing that acts."""
        self.check_acting("trained", "learnt")
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
        """Sets the parameters to their values at a ``snapshot``.

        Raises:
            HeadEditError: it is not a snapshot of edits of this shape, or the edits are merged.
        """
        shapes = [parameter.shape for parameter in self.module.parameters()]
        if not isinstance(snapshot, list) or [getattr(value, "shape", None) for value in snapshot] != shapes:
            raise HeadEditError(
                f"snapshot: found {describe(snapshot)}, expected what snapshot() of these edits returned while "
                "the same adapter was active."
            )
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
