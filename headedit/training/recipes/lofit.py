"""``lofit`` (Yin, Ye, Durrett, NeurIPS 2024, arXiv 2406.01563): selects heads by scales, edits them by offsets."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from headedit.edits import HeadEdits
from headedit.edits.gate_set import GateIndex, all_gates, freeze_gates
from headedit.edits.importing.checkpoints import read_heads
from headedit.errors import HeadEditError
from headedit.training.loop.schedules import Moment
from headedit.training.recipes.base import Recipe
from headedit.training.recipes.jola import add_noise
from headedit.training.recipes.session import Session

_BEYOND_NOISE = 10
"""So many standard deviations are beyond what fresh vectors are drawn from."""


@dataclass(frozen=True, kw_only=True)
class Lofit(Recipe):
    """LoFiT: selects heads by scales trained on all of them, then trains offsets on the selected heads.

    The first stage learns z ← (1 + A) ⊙ z on all heads with CE + λ‖A‖₁; the score of a head is ‖A‖₂. The second stage
    drops A and learns z ← z + v on the heads with the highest scores, without a penalty. Both vectors start from
    N(0, 1e-3). Learning rates, λ, epochs, batch size and weight decay are the paper's; from its ranges, the ends that
    suit a few hundred examples.

    Fields:
        select_lr: peak learning rate of the first stage; the paper's range is 5e-4 to 5e-3.
        select_lambda: λ of the L1 penalty, in nats per token; the paper's range is 5e-4 to 5e-3.
        edit_lr: peak learning rate of the second stage; the paper's range is 5e-3 to 2e-2.
        share: share of the heads to keep; the paper's range is 0.03 to 0.1.
        heads: number of heads to keep, instead of ``share``.
        given_heads: the heads to edit, in place of a first stage: pairs of a layer and a head, both counted from 0, the
            most important first; or the name of an ``.npy`` file of them, [K, 2], as LoFiT's own code saves it. With
            ``heads``, the first so many of them.
        init_std: standard deviation of the noise that is added to the vectors at the start of each stage.
    """

    epochs: int = 5
    weight_decay: float = 0.01
    adam_epsilon: float = 1e-8
    select_lr: float = 5e-3
    select_lambda: float = 5e-4
    edit_lr: float = 2e-2
    share: float = 0.1
    heads: int | None = None
    given_heads: str | list[list[int]] | None = None
    init_std: float = 1e-3

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_above_zero("select_lr", "edit_lr")
        if self.select_lambda < 0:
            raise HeadEditError(f"select_lambda: found {self.select_lambda}, expected 0 or more.")
        if not 0 < self.share <= 1:
            raise HeadEditError(f"share: found {self.share}, expected a share of the heads above 0 and at most 1.")
        if self.given_heads is not None:
            given = read_heads(self.given_heads) if isinstance(self.given_heads, str) else self.given_heads
            object.__setattr__(self, "given_heads", check_heads(given))
            if self.heads is not None and not 1 <= self.heads <= len(given):
                raise HeadEditError(
                    f"heads: found {self.heads}, expected 1 to {len(given)}, the number of given_heads."
                )

    def count(self, heads: int) -> int:
        """How many of a number of heads are kept: ``share`` of them, at least one."""
        return max(1, round(self.share * heads))

    def run(self, session: Session) -> None:
        """Trains scales on all heads, unless heads are given, then offsets on the heads with the largest scales."""
        edits = session.edits
        if edits.config.vectors != "both" or edits.config.gates != "separate":
            raise HeadEditError(
                "The recipe 'lofit' needs both vectors with a gate each: EditConfig(vectors='both', gates='separate')."
            )
        _refuse_start(edits)
        chosen = self._select(session) if self.given_heads is None else self._given(edits)
        add_noise(edits, self.init_std, session.seed + 1)
        freeze_gates(edits.module, chosen)
        stage = self.stage(scale_lr=self.edit_lr, offset_lr=self.edit_lr)
        session.train_stage(replace(stage, warmup_epochs=0.0), name="edit", valid=session.valid)

    def _select(self, session: Session) -> list[GateIndex]:
        """Trains scales on all heads; returns the offset gates of those with the largest, and restores the edits."""
        edits = session.edits
        scales = [gate for gate in all_gates(edits.module) if gate.vector == "scale"]
        wanted = self.count(len(scales)) if self.heads is None else self.heads
        if not 1 <= wanted <= len(scales):
            raise HeadEditError(f"heads: found {self.heads}, expected 1 to {len(scales)}.")
        add_noise(edits, self.init_std, session.seed)
        freeze_gates(edits.module, scales)
        stage = self.stage(scale_lr=self.select_lr, offset_lr=self.select_lr)
        session.train_stage(replace(stage, warmup_epochs=0.0), name="select", objective=ScaleNorm(self.select_lambda))
        norms = [scale.norm(dim=-1).tolist() for scale in _scales(edits)]
        ranked = sorted(scales, key=lambda gate: norms[gate.site][gate.head], reverse=True)[:wanted]
        session.restore_start()
        return [GateIndex(gate.site, "offset", gate.head) for gate in ranked]

    def _given(self, edits: HeadEdits) -> list[GateIndex]:
        """The offset gates of the given heads."""
        assert isinstance(self.given_heads, list)
        sites = {site.layer: (i, site.heads) for i, site in enumerate(edits.sites)}
        found = []
        for layer, head in self.given_heads[: self.heads]:
            index, heads = sites.get(layer, (0, 0))
            if not head < heads:
                raise HeadEditError(
                    f"given_heads: found layer {layer}, head {head}; the edited layers are {min(sites)} to "
                    f"{max(sites)}, with {max(count for _, count in sites.values())} heads, both counted from 0."
                )
            found.append(GateIndex(index, "offset", head))
        return found


def check_heads(heads: Sequence[Sequence[int]]) -> list[list[int]]:
    """Pairs of a layer and a head, as lists.

    Raises:
        HeadEditError: there is none, one is not such a pair or has a number below 0, or one is there twice.
    """
    pairs = [list(pair) for pair in heads]
    if not pairs or any(len(pair) != 2 or min(pair) < 0 for pair in pairs):
        raise HeadEditError(
            "given_heads: expected pairs of a layer and a head, both counted from 0, such as [[14, 3], [20, 11]]."
        )
    twice = next((pair for i, pair in enumerate(pairs) if pair in pairs[:i]), None)
    if twice is not None:
        raise HeadEditError(f"given_heads: head {twice[1]} of layer {twice[0]} is named twice.")
    return pairs


def _refuse_start(edits: HeadEdits) -> None:
    """Raises a HeadEditError for vectors that are no fresh ones, as this recipe drops what it does not train itself."""
    largest = _BEYOND_NOISE * edits.config.init_std
    for site, edit in edits.module.pairs():
        for name, vector in edit.vectors.items():
            heads = (vector.abs() > largest).any(-1).nonzero().flatten().tolist()
            if heads:
                raise HeadEditError(
                    "The recipe 'lofit' trains vectors from nothing, and would throw away those that these edits "
                    f"have, such as the {name} of head {heads[0]} in layer {site.layer}. Give fresh edits: "
                    "edits.add_adapter('lofit') and edits.set_adapter('lofit'); or take a recipe that starts from "
                    "them: localise, jola, refit or ungated."
                )


@dataclass(frozen=True)
class ScaleNorm:
    """λ·‖A‖₁, the penalty of LoFiT's first stage.

    Fields:
        weight: λ, in nats per token.
    """

    weight: float

    def weights(self, moment: Moment) -> tuple[float, float]:
        """(0, λ), the same at every moment."""
        return 0.0, self.weight

    def penalty(self, edits: HeadEdits, moment: Moment) -> Tensor:
        """λ times the sum of the absolute values of all scales."""
        sums = [scale.abs().sum() for scale in _scales(edits)]
        return self.weight * torch.stack([total.to(sums[0].device) for total in sums]).sum()


def _scales(edits: HeadEdits) -> list[Tensor]:
    return [edit.vectors["scale"] for edit in edits.module]
