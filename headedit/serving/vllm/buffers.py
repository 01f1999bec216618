"""The vectors of served edits next to a site's module, and the edit of its input inside the compiled graph.

Every site has a factor and an offset for each slot, and all sites share the slot of each token of the pass. The tensors
keep their addresses, so that a compiled or captured graph reads what was last written. Slot 0 is the identity.
"""

from typing import Any

import torch
from torch import Tensor, nn

_SCALE, _OFFSET, _SLOT = "headedit_scale", "headedit_offset", "headedit_slot_of_token"


def add_buffers(module: nn.Module, slots: int, width: int, slot_of_token: Tensor) -> None:
    """Gives a module the vectors of its site, all of them the identity, and edits its input from now on.

    It must be done before the model is compiled.

    Args:
        module: takes an input [..., tokens, width].
        slots: how many edits there can be at once.
        width: of the input on this rank.
        slot_of_token: the slot of each token of a pass, [most tokens].
    """
    device = slot_of_token.device
    module.register_buffer(_SCALE, torch.ones(slots + 1, width, device=device), persistent=False)
    module.register_buffer(_OFFSET, torch.zeros(slots + 1, width, device=device), persistent=False)
    module.register_buffer(_SLOT, slot_of_token, persistent=False)
    module.register_forward_pre_hook(_edit)


def _edit(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """The module's inputs with the first one edited: in float32, rounded once."""
    z, *others = inputs
    slot = getattr(module, _SLOT)[: z.shape[-2]]
    edited = torch.addcmul(getattr(module, _OFFSET)[slot], z.float(), getattr(module, _SCALE)[slot])
    return (edited.to(z.dtype), *others)


@torch.no_grad()
def write(module: nn.Module, slot: int, scale: Tensor, offset: Tensor) -> None:
    """Puts an edit's vectors of this rank into a slot, each [width]."""
    getattr(module, _SCALE)[slot].copy_(scale)
    getattr(module, _OFFSET)[slot].copy_(offset)


@torch.no_grad()
def clear(module: nn.Module, slot: int) -> None:
    """Makes a slot the identity."""
    getattr(module, _SCALE)[slot].fill_(1.0)
    getattr(module, _OFFSET)[slot].zero_()
